"""Pushing to the Hub from a Trainer: always a release, during training and after it."""

import json
import os
import shutil
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from kdmcse_hf.export import export_release
from kdmcse_hf.privacy import check_private, clean_configs
from kdmcse_hf.release import write_json

logger = logging.get_logger(__name__)


def push_trained(
    trainer: Trainer,
    commit_message: str = "End of training",
    blocking: bool = True,
    token: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
) -> CommitInfo | Future[CommitInfo] | None:
    """Saves the model and pushes a release of it. Arguments and result are those of `Trainer.push_to_hub`."""
    if trainer.hub_model_id is None:
        trainer.init_hf_repo(token=token, private=private)
    trainer.save_model(_internal_call=True)
    if not trainer.is_world_process_zero():
        return None
    trainer._finish_current_push()
    trainer.callback_handler.on_push_begin(trainer.args, trainer.state, trainer.control)
    job = _push(trainer, str(trainer.args.output_dir), commit_message, token, revision)
    return job.result() if blocking else job


def push_checkpoint(trainer: Trainer, checkpoint: str) -> None:
    """Pushes a release of a checkpoint in the background, if `hub_strategy` wants it; training goes on if it fails.

    Two of the strategies push the checkpoint itself, too, to resume from: without `training_args.bin`, which holds the
    token, and without the places where things were made.
    """
    args, strategy = trainer.args, HubStrategy(trainer.args.hub_strategy)
    running: Any = trainer.push_in_progress  # typed by its first value, None
    if not trainer.is_world_process_zero() or strategy == HubStrategy.END:
        return
    if running is not None and not running.is_done() and not args.hub_always_push:
        return
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    names = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: Path(checkpoint).name}
    message = f"Training in progress, step {trainer.state.global_step}"
    try:
        job = _push(trainer, checkpoint, message, resumable=names.get(strategy))
    except (ValueError, OSError) as error:
        logger.warning(f"{checkpoint} was not pushed to the Hub: {error}")
        return
    if running is None:
        trainer.push_in_progress = running = PushInProgress()  # type: ignore[assignment]
    running.jobs.append(job)


def _push(
    trainer: Trainer,
    checkpoint: str,
    commit_message: str,
    token: str | None = None,
    revision: str | None = None,
    resumable: str | None = None,
) -> Future[CommitInfo]:
    """Exports a checkpoint and uploads that, with the checkpoint itself under the name `resumable`, in one commit."""
    work = Path(tempfile.mkdtemp(prefix="_push-", dir=trainer.args.output_dir))
    try:
        folder = export_release(checkpoint, work / "release", name=str(trainer.hub_model_id))
        if resumable:
            copy_resumable(Path(checkpoint), folder / resumable)
        job: Future[CommitInfo] = HfApi(library_name="kdmcse_hf").upload_folder(
            repo_id=str(trainer.hub_model_id),
            folder_path=folder,
            commit_message=commit_message,
            token=token or trainer.args.hub_token,
            revision=revision or trainer.args.hub_revision,
            run_as_future=True,
        )
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise

    def done(job: Future[CommitInfo]) -> None:
        shutil.rmtree(work, ignore_errors=True)
        if not job.cancelled() and (error := job.exception()):
            logger.warning(f"{checkpoint} was not pushed to the Hub: {error}")

    job.add_done_callback(done)
    return job


def copy_resumable(checkpoint: Path, target: Path) -> None:
    """Copies a checkpoint to resume from, without what gives away where it was made and by whom."""
    shutil.copytree(checkpoint, target, ignore=shutil.ignore_patterns("training_args.bin"), copy_function=_copy)
    clean_configs(target)
    state: dict[str, Any] = json.loads((target / "trainer_state.json").read_text(encoding="utf-8"))
    if state["best_model_checkpoint"]:
        state["best_model_checkpoint"] = Path(state["best_model_checkpoint"]).name
    write_json(target / "trainer_state.json", state)
    check_private(target, (checkpoint.absolute(),))


def _copy(source: str, target: str) -> None:
    """Large files are linked: nothing writes to them, and `save_total_limit` may remove the checkpoint meanwhile."""
    if not source.endswith(".json"):
        try:
            os.link(source, target)
            return
        except OSError:
            pass
    shutil.copyfile(source, target)

"""Pushing to the Hub from a Trainer: always a release, during training and after it.

The release is written and verified where the Trainer waits for it, in its output folder; only what follows, reading
what the Hub has and uploading, goes on in the background.
"""

import json
import os
import re
import shutil
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from kdmcse_hf.export import export_release
from kdmcse_hf.privacy import check_private, clean_configs
from kdmcse_hf.release import CARD, MANIFEST, edited_card, files_of, read_manifest, write_json

logger = logging.get_logger(__name__)

# One for all pushes: it runs what it is given one after the other, so that the last commit is of the last step.
_API = HfApi(library_name="kdmcse_hf")
_WORK = "_push-"
_at_work: set[Path] = set()
# What of an earlier release, or of another checkpoint, would be read with this one; no other file is ever deleted.
_OURS = re.compile(
    r"(?:\.eval_results|1_Pooling|kdmcse)/.+|model[^/]*\.safetensors[^/]*|"
    # what tokenizers and encoders of all kinds are saved as, and no other file that somebody put beside them
    r"(?:config|generation_config|modules|sentence_bert_config|config_sentence_transformers|tokenizer|tokenizer_config|"
    r"special_tokens_map|added_tokens|vocab)\.json|vocab\.txt|merges\.txt"
)


def push_trained(
    trainer: Trainer,
    commit_message: str = "End of training",
    blocking: bool = True,
    token: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
    *,
    replace_card: bool = False,
    **card: Any,
) -> CommitInfo | Future[CommitInfo] | None:
    """Saves the model and pushes a release of it, in one commit.

    What the repository has of an earlier release and the new one has not, such as scores, is deleted.

    Args:
        trainer, commit_message, blocking, token, revision, private: as in `Trainer.push_to_hub`.
        replace_card: whether to replace a card that was edited on the Hub, too.
        card: what `Trainer.push_to_hub` would write into its model card; refused.

    Returns:
        As `Trainer.push_to_hub`.

    Raises:
        ValueError: something was given for the card, which is written from the run's record; the checkpoint has no
            release (see [`export_release`]); the card on the Hub was edited.
    """
    if card:
        raise ValueError(
            f"`push_to_hub` was given {', '.join(sorted(card))}: the card is written from what the run recorded. "
            f"Leave them out, and edit {CARD} on the Hub afterwards."
        )
    if trainer.hub_model_id is None:
        if private is not None:
            trainer.args.hub_private_repo = private
        trainer.init_hf_repo(token=token)
    trainer.save_model(_internal_call=True)
    if not trainer.is_world_process_zero():
        return None
    trainer._finish_current_push()
    trainer.callback_handler.on_push_begin(trainer.args, trainer.state, trainer.control)
    folder = str(trainer.args.output_dir)
    job = _push(trainer, folder, commit_message, token, revision, replace_card=replace_card)
    return job.result() if blocking else job


def push_checkpoint(trainer: Trainer, checkpoint: str) -> None:
    """Pushes a release of a checkpoint, if `hub_strategy` wants it; training goes on if it fails.

    Two of the strategies push the checkpoint itself, too, to resume from, with `optimizer.pt`, `scheduler.pt` and
    `rng_state.pth`, which are pickles; without `training_args.bin`, which holds the token, and without the places where
    things were made. Training waits for the export and its verification, and not for the upload.
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
    replace_card: bool = False,
) -> Future[CommitInfo]:
    """Exports a checkpoint, and uploads that in the background; with the checkpoint itself, if `resumable` names it."""
    output, repository = Path(str(trainer.args.output_dir)), str(trainer.hub_model_id)
    for left in set(output.glob(f"{_WORK}*")) - _at_work:  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=_WORK, dir=output))
    _at_work.add(work)

    def clear_up() -> None:
        shutil.rmtree(work, ignore_errors=True)
        _at_work.discard(work)

    try:
        folder = export_release(checkpoint, work / "release", name=repository)
        if resumable:
            copy_resumable(Path(checkpoint), folder / resumable)
        token, revision = token or trainer.args.hub_token, revision or trainer.args.hub_revision
        job = _API.run_as_future(_upload, repository, folder, commit_message, token, revision, replace_card)
    except BaseException:
        clear_up()
        raise

    def done(job: Future[CommitInfo]) -> None:
        clear_up()
        if not job.cancelled() and (error := job.exception()):
            logger.warning(f"{checkpoint} was not pushed to the Hub: {error}")

    job.add_done_callback(done)
    return job


def _upload(
    repository: str, folder: Path, commit_message: str, token: str | None, revision: str | None, replace_card: bool
) -> CommitInfo:
    there = set(_API.list_repo_files(repository, token=token, revision=revision))
    files = set(files_of(folder))
    stale = sorted(name for name in there - files if _OURS.fullmatch(name))
    if not replace_card and {CARD, MANIFEST} <= there:
        card, manifest = (
            Path(hf_hub_download(repository, name, token=token, revision=revision)).read_bytes()
            for name in (CARD, MANIFEST)
        )
        try:
            if edited_card(card, json.loads(manifest), read_manifest(folder)) is not None:
                files.remove(CARD)
        except ValueError as error:
            raise ValueError(f"{repository} stays as it is: {error}") from None
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationDelete(name, is_folder=False) for name in stale),
        *(CommitOperationAdd(name, folder / name) for name in sorted(files)),
    ]
    return _API.create_commit(
        repository, operations, commit_message=commit_message, token=token, revision=revision, run_as_future=False
    )


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

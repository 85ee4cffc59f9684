"""Before the first step: everything that can be known to be wrong with a run is looked for, and thresholds are set."""

import torch
from transformers.utils import logging

from kdmcse_hf.calibration import CALIBRATION_PAIRS, FilterReport, calibrate
from kdmcse_hf.data import TrainingData
from kdmcse_hf.modeling_kdmcse import KDMCSEModel
from kdmcse_hf.objective import Objective

logger = logging.get_logger(__name__)


def check_fit(
    model: KDMCSEModel, objective: Objective, data: TrainingData, seed: int
) -> tuple[Objective, list[FilterReport]]:
    """The objective with its thresholds calibrated, and what each of its filters does.

    Raises:
        ValueError: model, objective and data do not fit together; says how.
    """
    if objective.needs and data.pairs is None:
        raise ValueError(
            f"The objective reads the teacher's {' and '.join(sorted(objective.needs))} features, but there are no "
            "pairs: give a teacher cache, or use the preset `simcse`."
        )
    if not objective.needs <= data.needs:
        raise ValueError(
            f"The objective needs {sorted(objective.needs)} features, the data carries {sorted(data.needs)}: "
            "make it by `TrainingData(text, pairs, objective.needs)`."
        )
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"The model's parameter {name} is {parameter.dtype}: small updates would be lost. Load the model with "
                "`dtype=torch.float32`; mixed precision is switched on by `bf16=True` or `fp16=True`."
            )
    if data.pairs is None or not objective.needs:
        return objective, []
    teacher, cache = data.pairs.teacher, data.pairs.teacher.cache
    if teacher.captions_per_image != objective.captions_per_image:
        raise ValueError(
            f"The objective takes {objective.captions_per_image} caption(s) of an image, the pairs hold "
            f"{teacher.captions_per_image}: make them with `captions_per_image={objective.captions_per_image!r}`."
        )
    for term, store in (("image", cache.image_features), ("caption", cache.caption_features)):
        width, expected = getattr(store, "width", None), getattr(model.config, f"{term}_embed_dim")
        if getattr(objective, f"{term}_term") and width != expected:
            raise ValueError(
                f"{cache.folder} has {term} features of width {width}, but the model's `{term}_embed_dim` is "
                f"{expected}: build the model with `{term}_embed_dim={width}`."
            )
    sample = teacher.sample(CALIBRATION_PAIRS, data.needs, seed)
    for kind, features in (("image", sample.teacher_image), ("caption", sample.teacher_text)):
        if features is not None and not features.isfinite().all():
            raise ValueError(
                f"{cache.folder} has {kind} features that are NaN or infinite. `TeacherCache(folder).verify()` names "
                "the file if it was changed; otherwise extract the features again."
            )
    objective, reports = calibrate(objective, sample)
    for report in reports:
        logger.info(str(report))
    return objective, reports

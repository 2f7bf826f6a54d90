"""Stage `distill <model>`: train a student of a trained model, and leave it in `artifacts/<model>_student/`.

The student has the files of any trained model, and can be sampled, judged, promoted and served like one. Progressive
distillation trains several students, each of which halves the steps of the one before; those before the last are kept in
`.contrapposto/students/`. A run that is killed resumes and ends with the same bits.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from diffusion_core.distill_choices import Distillation, Student
from diffusion_core.recipe import Recipe
from tasks import paths
from tasks.common.errors import UserError
from tasks.config.distill import Distill
from tasks.config.params import Params, Upscaler
from tasks.config.sampling import Guidance
from tasks.models import modality, model_file
from tasks.models.conditioning import AnyModel
from tasks.models.guiding import guided
from tasks.models.modality import Model
from tasks.train import launch, preparation, run_fingerprint
from tasks.train.preparation import TrainingData

log = logging.getLogger(__name__)


def run(params: Params, root: Path, model: str) -> None:
    """Distil the model in artifacts/<model>/ as `params.distill` says. Raises UserError if it does not name the model."""
    section = params.distill.get(model)
    if section is None:
        raise UserError(f"params.yaml: distill.{model} is missing: it says how the {model} model is distilled.")
    if not launch.under_torchrun():
        ranks = launch.ranks(modality.config_of(params, model))
        if ranks > 1:
            launch.torchrun(["tasks", "distill", model], ranks, root)
            return
    with launch.device() as device:
        _distill(params, root, model, section, device)


def _distill(params: Params, root: Path, name: str, section: Distill, device: torch.device) -> None:
    folder = paths.model_folder(root, name)
    first = model_file.load(folder, device)
    assert not isinstance(first.config, Upscaler)  # `distill` names poses or pictures
    config = _config(first.config, section)
    data = preparation.load_data(root, name, config, device, first.codec, first.categories)
    students = section.distillation.students
    for number, student in enumerate(students):
        last = number == len(students) - 1
        folder = _train_student(params, root, name, section, config, data, folder, student, device, last)


def _config(teacher: AnyModel, section: Distill) -> AnyModel:
    """The teacher's parameters with those of the distillation."""
    shared = {key: value for key, value in section.model_dump().items() if key in type(teacher).model_fields}
    own: dict[str, Any] = {
        "start": None,
        "keep": "last",
        "batch_growth": [],
        "decay_from_images": 0,
        "power_averages": [],
    }
    return teacher.model_copy(update=shared | own)


def _train_student(
    params: Params,
    root: Path,
    name: str,
    section: Distill,
    config: AnyModel,
    data: TrainingData,
    teacher_folder: Path,
    student: Student,
    device: torch.device,
    last: bool,
) -> Path:
    """Train one student of the model in a folder, unless that was done before; returns the student's folder."""
    teacher_sha256 = paths.sha256(teacher_folder)
    teacher, model = (model_file.load(teacher_folder, device) for _ in range(2))
    recipe = _recipe(section.distillation, student, teacher, model, section.guidance)
    model.denoiser.requires_grad_(True)
    model = replace(model, config=config, recipe=recipe, meta={modality.STUDENT: asdict(student)})
    trainer = preparation.trainer(model, config, data, device)
    more = {
        "distill": json.dumps(section.model_dump(), sort_keys=True),
        "student": json.dumps(asdict(student), sort_keys=True),
        "teacher": teacher_sha256,
    }
    training_name = paths.student(name)
    loop = preparation.training_loop(params, root, training_name, model, config, trainer, data, teacher_sha256, more)
    if not last:
        loop.output = root / paths.STUDENTS / run_fingerprint.digest(loop.folder.fingerprint)
        if (loop.output / paths.MODEL_FILE).is_file():
            return loop.output
    if trainer.rank == 0:
        log.info(f"{training_name}: {student.method}, {student.steps} steps instead of {_steps(teacher, student)}.")
    preparation.run(loop, data)
    return loop.output


def _recipe(distillation: Distillation, student: Student, teacher: Model, model: Model, guidance: float) -> Recipe:
    # A student of a guided teacher is guided by its own weights.
    target = teacher.as_sampled(teacher.denoiser) if teacher.student else guided(teacher, Guidance(scale=guidance))
    return distillation.recipe(student, teacher.config.training, teacher.recipe, target, model.denoiser)


def _steps(teacher: Model, student: Student) -> int:
    return teacher.student.steps if teacher.student is not None else student.total

"""Every path of a workspace, in one place. Constants are relative to the workspace: `root / paths.SHARDS`."""

from __future__ import annotations

import hashlib
from pathlib import Path

MODELS = ("poses", "pictures")
UPSCALER = "upscaler"  # a third model, if pictures are enlarged
MOTION = "motion"  # the model of clips, which is trained only if motion.run says so
VIDEO = "video"  # the model of clips of pictures, which is trained only if video.run says so

PARAMS = Path("params.yaml")

# What the stages read and write; DVC tracks these.
RAW = Path("data/raw")  # one folder per part
MANNEQUIN = RAW / "mannequin"  # the built-in pictures
LISTINGS = Path("data/listings")  # one file per part: what is in its folder
LISTED = LISTINGS / "listed.txt"
POSES = Path("data/poses")  # one folder per part
DATASET = Path("data/dataset")
SHARDS = Path("data/shards")
ANIMATION = Path("data/animation")  # the built-in motion
CLIPS = Path("data/clips")  # windows of motion, as shards
FILM = Path("data/film")  # the built-in motion in pictures
VIDEO_CLIPS = Path("data/video")  # clips of pictures, as shards
ARTIFACTS = Path("artifacts")  # one folder per model
RECOGNISER = ARTIFACTS / "recogniser"
SAMPLES = Path("samples")  # one folder per model
REPORTS = Path("reports")
DATASET_CARD = REPORTS / "dataset.html"
MEMORIZATION = REPORTS / "memorization"
MEMBERSHIP_INFERENCE = REPORTS / "membership_inference"
POSE_ACCURACY = REPORTS / "pose_accuracy"
CODEC_QUALITY = REPORTS / "codec_quality"
RECOGNITION = REPORTS / "recognition"
FIDELITY = REPORTS / "fidelity"
PROMOTE = REPORTS / "promote"
MOTION_QUALITY = REPORTS / "motion_quality"
PROMOTE_MOTION = REPORTS / "promote_motion"
PROMOTE_VIDEO = REPORTS / "promote_video"
MOTION_PAGE = REPORTS / "motion.html"
VIDEO_QUALITY = REPORTS / "video_quality"
VIDEO_PAGE = REPORTS / "video.html"
CLIPS_CARD = REPORTS / "clips.html"  # of the clips of motion
SUMMARY = REPORTS / "summary"
REPORT = REPORTS / "report.html"

# What the commands write.
FOLDS = REPORTS / "folds"  # one folder per model
COMPARE = REPORTS / "compare"
EXPLAIN = REPORTS / "explain"
RECOGNISED = REPORTS / "recognised.json"
VIDEO_DISTANCE = REPORTS / "video_distance"
EXPORTS = Path("exports")  # one folder per alias
GENERATED = Path("generated")

# State and caches of this machine. Neither git nor DVC tracks them.
STATE = Path(".contrapposto")
EXTRACT_STATE = STATE / "extract"
FINDINGS = EXTRACT_STATE / "findings.db"
LISTING_STATE = STATE / "listings"
SLICES = STATE / "slices"
FEATURES = STATE / "features"
NETWORK_WEIGHTS = STATE / "weights"  # downloaded, one file per sha256
REGISTERED_MODELS = STATE / "models"  # fetched from the registry, one folder per sha256
LATENTS = STATE / "latents"  # of the training pictures, one file per digest
PRIOR = STATE / "prior"  # what models draw to keep what they know, one folder per digest
CERTIFICATES = STATE / "certificates"  # pictures that adapters are tested with, one folder per method
TEXT = STATE / "text"  # embeddings of captions, one folder per text encoder
TRAINING = STATE / "training"  # one folder per model and training
FOLD_MODELS = STATE / "folds"  # models of parts of the data, one folder per model
STUDENTS = STATE / "students"  # intermediate students of distillations, one folder per training
DATASET_HISTORY = STATE / "datasets.json"
SEEN_DATA = STATE / "seen.json"
PREFECT = STATE / "prefect"
SERVICES = STATE / "services"
HOME = STATE / "home"  # for users without a home folder

# Files inside those folders that several packages read.
MODEL_FILE = "model.safetensors"
SHARD_INDEX = "index.json"
CLASSIFIER_FILE = "classifier.json"
GRID = "grid.png"  # a picture of the samples


def model_folder(root: Path, model: str) -> Path:
    """The folder of a trained model."""
    return root / ARTIFACTS / model


def trained_models(root: Path) -> tuple[str, ...]:
    """The models in `artifacts/`: MODELS, and the upscaler if there is one."""
    return (*MODELS, UPSCALER) if (model_folder(root, UPSCALER) / MODEL_FILE).is_file() else MODELS


def model_sha256(root: Path, model: str) -> str:
    """The sha256 of a trained model's file, by which the model is known everywhere."""
    return sha256(model_folder(root, model))


def sha256(folder: Path) -> str:
    """The sha256 of the model file in a folder."""
    return hashlib.sha256((folder / MODEL_FILE).read_bytes()).hexdigest()


def student(model: str) -> str:
    """The name of the distilled form of a model, which is that of its folder."""
    return f"{model}_student"


def adapted(model: str) -> str:
    """The name of the adapted form of a model, which is that of its folder."""
    return f"{model}_adapted"


def classifier(model: str) -> str:
    """The name of the classifier that guides a model."""
    return f"{model}_classifier"


def on_everything(model: str) -> str:
    """The name of the form of a model that was trained without held-out examples, see tasks/folds."""
    return f"{model}_all"


def classifier_folder(root: Path, model: str) -> Path:
    """The folder of the classifier that guides a model."""
    return root / ARTIFACTS / classifier(model)


def sample_folder(root: Path, model: str) -> Path:
    """The folder of a model's samples."""
    return root / SAMPLES / model

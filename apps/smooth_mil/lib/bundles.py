# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A bundle, which of its weights are in use, and its tasks: read a scan, read a slide, learn from labels."""

import gzip
import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from threading import Lock
from typing import Any

import h5py
import numpy as np
import openslide
from monai.transforms import LoadImage
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.utils.others.pathology import create_asap_annotations_xml, create_dsa_annotations_json

RELEASED, NEWEST = "released", "newest"
FEATURES = (".h5", ".pt", ".npy")
WHOLE = ([0, 0], ([0, 0], [2048, 2048]))  # MONAI Label's own region of whoever names none is the second
OF_THE_RUN = ("source", "input", "recipe", "instances")  # in result.json, and nothing to answer
FEWEST = 4  # labels that a training begins with: two of each kind

logger = logging.getLogger(__name__)


def refused(why: str) -> MONAILabelException:
    """Return what a client is told of a request that cannot be met."""
    return MONAILabelException(MONAILabelError.INVALID_INPUT, why)


class Bundle:
    """A downloaded bundle, and the weights that were trained from its own.

    Args:
        folder: of the bundle.
        kept: where weights of trainings go, a folder each; the bundle's own are never written over.
    """

    def __init__(self, folder: Path, kept: Path) -> None:
        if not (folder / "configs" / "inference.json").is_file():
            raise MONAILabelException(MONAILabelError.APP_INIT_ERROR, f"{folder} is no bundle: give its folder")
        self.folder = folder
        self.kept = kept
        self.name = folder.name
        metadata = json.loads((folder / "configs" / "metadata.json").read_text())
        self.version, self.description = metadata["version"], metadata["description"]
        self.of_slides = "slides" in json.loads((folder / "configs" / "inference.json").read_text())

    def reads(self, image: str) -> bool:
        """Whether an image is of the kind that the bundle reads: scans and slides may lie in one folder."""
        path = Path(image)
        of_slide = path.suffix in FEATURES or (path.is_file() and openslide.OpenSlide.detect_format(path) is not None)
        return of_slide == self.of_slides

    def trainings(self) -> list[Path]:
        """Folders of trainings that have ended with weights, the newest last."""
        found = self.kept.glob("training_*/model.pt")
        return sorted((path.parent for path in found), key=lambda path: int(path.name.rpartition("_")[2]))

    def choices(self) -> list[str]:
        """What may be asked for as `weights`, the default first."""
        return [NEWEST, RELEASED, *[path.name for path in self.trainings()]]

    def weights(self, choice: Any = NEWEST) -> Path:
        """Return the file of the weights that somebody chose."""
        choice = choice[0] if isinstance(choice, list) else choice or NEWEST
        trained = {path.name: path for path in self.trainings()}
        if choice == NEWEST and trained:
            return next(reversed(trained.values())) / "model.pt"
        if choice in (NEWEST, RELEASED):
            return self.folder / "models" / "model.pt"
        if choice not in trained:
            raise refused(f"there are no weights {choice}: choose {', '.join(self.choices())}")
        return trained[choice] / "model.pt"

    def sha256(self) -> str:
        """Return that of the newest weights."""
        return hashlib.sha256(self.weights().read_bytes()).hexdigest()

    def undo(self) -> str:
        """Put the newest training aside; return which weights are in use now."""
        trainings = self.trainings()
        if not trainings:
            raise refused("there is no training to undo: the released weights are in use")
        trainings[-1].rename(trainings[-1].with_name(f"undone_{trainings[-1].name}"))
        return trainings[-2].name if len(trainings) > 1 else RELEASED

    def new_training(self) -> Path:
        """Return a folder that no training has had."""
        numbers = [int(path.name.rpartition("_")[2]) for path in self.kept.glob("*training_*")]
        return self.kept / f"training_{max(numbers, default=0) + 1}"

    def run(self, config: str, **keys: Any) -> None:
        """Run a config as a person does; what it says goes to the server's log, and its last line is the error's."""
        words = [f"--{name}={value}" for name, value in keys.items()]
        command = [sys.executable, "-m", "monai.bundle", "run", f"--config_file={config}", *words]
        logger.info("in %s: %s", self.folder, " ".join(command))
        with subprocess.Popen(
            command, cwd=self.folder, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            last = ""
            for line in process.stdout or ():
                logger.info(line.rstrip())
                last = line.strip() or last
        if process.returncode:
            raise MONAILabelException(MONAILabelError.SERVER_ERROR, last.removeprefix("error: "))


class ScanInfer(BundleInferTask):
    """Read a scan; the segment is named with the probability and the call."""

    def __init__(self, bundle: Bundle, conf: dict[str, str]) -> None:
        super().__init__(str(bundle.folder), conf)
        self.bundle = bundle
        self.one_at_a_time = Lock()  # the weights in use are the task's
        self._config.pop("model_filename", None)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "weights": self.bundle.choices()}

    def __call__(self, request: dict[str, Any], callbacks: Any = None) -> tuple[str | None, dict[str, Any]]:
        with self.one_at_a_time:
            self.path = [str(self.bundle.weights(request.get("weights")))]
            self.bundle_config.config["ckpt_path"] = self.path[0]
            self.bundle_config.parse()
            file, told = super().__call__(request, callbacks)
        told["label_names"] = {f"suspected hemorrhage, probability {told['probability']:.2f}: {told['called']}": 1}
        return file if isinstance(file, str) else None, told  # of a map that nobody wanted as a file


class SlideInfer(InferTask):
    """Read a slide, or a region of it, as one bag, from its features; they are made once and kept beside the slides.

    A request has `location` and `size` in level-0 pixels for a region, and `output`: "dsa", "asap", or "json", whose
    answer holds the regions as GeoJSON for QuPath.
    """

    def __init__(self, bundle: Bundle, conf: dict[str, str]) -> None:
        super().__init__(InferType.CLASSIFICATION, [], 2, bundle.description)
        self.bundle = bundle
        self.encoder = conf.get("encoder", "")

    def config(self) -> dict[str, Any]:
        return {**super().config(), "weights": self.bundle.choices()}

    def is_valid(self) -> bool:
        return self.bundle.weights(RELEASED).is_file()

    def __call__(self, request: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        slide = Path(request["image"])
        location, size = request.get("location") or WHOLE[0], request.get("size") or WHOLE[1][0]
        with tempfile.TemporaryDirectory() as folder:
            bag = Path(folder, "features", f"{slide.stem}.h5")
            bag.parent.mkdir()
            features = self.features(slide)
            if list(location) == WHOLE[0] and list(size) in WHOLE[1]:
                os.symlink(features, bag.with_suffix(features.suffix))
            else:
                write_region(features, bag, np.array(location), np.array(size))
            self.bundle.run(
                "configs/inference.json",
                dataset_dir=bag.parent,
                output_dir=Path(folder, "out"),
                ckpt_path=self.bundle.weights(request.get("weights")),
            )
            (result,) = Path(folder, "out").glob("*/result.json")
            told = {key: value for key, value in json.loads(result.read_text()).items() if key not in OF_THE_RUN}
            regions = regions_of(result.parent)
        told |= {"name": slide.name, "location": list(location), "size": list(size), "description": self.description}
        return write_annotations(request.get("output"), told, regions, bounds_offset(slide))

    def features(self, slide: Path) -> Path:
        """Return the file of a slide's features, made now if there is none."""
        if slide.suffix in FEATURES:
            return slide
        folder = slide.parent / "features"
        there = [folder / f"{slide.stem}{suffix}" for suffix in FEATURES]
        made = next((path for path in there if path.is_file()), None)
        if made is None:
            with tempfile.TemporaryDirectory() as alone:
                for part in slide.parent.iterdir():  # a slide of several files, and the folder of a .mrxs
                    if part.stem == slide.stem:
                        os.symlink(part, Path(alone, part.name))
                files = ["configs/features.json", self.encoder] if self.encoder else ["configs/features.json"]
                self.bundle.run(json.dumps(files).replace('"', "'"), slides=alone, output_dir=folder)
            made = there[0]
            if not made.is_file():
                raise MONAILabelException(
                    MONAILabelError.SERVER_ERROR, f"no features were made of {slide.name}: see the server's log"
                )
        return made


def write_region(features: Path, path: Path, location: np.ndarray, size: np.ndarray) -> None:
    """Write the features whose patch begins within a rectangle of level-0 pixels."""
    if features.suffix != ".h5":
        raise refused(f"{features.name} is no HDF5, and has no coordinates: ask for it whole")
    with h5py.File(features) as file, h5py.File(path, "w") as part:
        coords = file["coords"][:]
        within = ((coords >= location) & (coords < location + size)).all(axis=1)
        if not within.any():
            raise refused(f"the region at {location.tolist()} holds no tissue: choose another")
        part.attrs.update(file.attrs)
        for name, dataset in file.items():
            rows = dataset[:]
            kept = part.create_dataset(name, data=rows[within] if len(rows) == len(within) else rows)
            kept.attrs.update(dataset.attrs)


def regions_of(folder: Path) -> list[dict[str, Any]]:
    """Return the annotations among the GeoJSON of one result: flagged patches that lie together."""
    found: list[dict[str, Any]] = []
    for path in folder.glob("*.geojson.gz"):
        with gzip.open(path, "rt") as file:
            features = json.load(file)["features"]
        found += [each for each in features if each["properties"]["objectType"] == "annotation"]
    return found


def bounds_offset(slide: Path) -> np.ndarray:
    """Return by how much QuPath's coordinates of a slide are less than OpenSlide's."""
    try:
        with openslide.OpenSlide(slide) as opened:
            names = openslide.PROPERTY_NAME_BOUNDS_X, openslide.PROPERTY_NAME_BOUNDS_Y
            return np.array([int(opened.properties.get(name, 0)) for name in names])
    except openslide.OpenSlideError:
        return np.zeros(2, dtype=int)  # of features alone


def write_annotations(
    output: str | None, told: dict[str, Any], regions: list[dict[str, Any]], offset: np.ndarray
) -> tuple[str | None, dict[str, Any]]:
    """Return the file that DSA or ASAP reads, and what is told besides."""
    if output not in ("dsa", "asap"):
        return None, {**told, "geojson": {"type": "FeatureCollection", "features": regions}}
    name = f"{told['called']}, probability {told['probability']:.2f}"
    contours = [
        (np.array(ring) + offset).tolist()
        for region in regions
        for polygon in _polygons(region["geometry"])
        for ring in polygon[:1]
    ]
    drawn = {"labels": {name: (214, 39, 40)}, "elements": [{"label": name, "contours": contours}]}
    content = {**told, "model": told["model"]["name"], "annotations": [{"annotation": drawn}]}
    write = create_dsa_annotations_json if output == "dsa" else create_asap_annotations_xml
    path, _ = write(content)
    return path, told


def _polygons(geometry: dict[str, Any]) -> list[Any]:
    coordinates: list[Any] = geometry["coordinates"]
    return coordinates if geometry["type"] == "MultiPolygon" else [coordinates]


class Training(TrainTask):
    """Learn from the labels that people gave, begun from the weights in use; every training has a folder of its own.

    A label is a mask, painted anywhere for a finding and empty for none, or JSON, {"label": 0 or 1} or the name of a
    class. `undo` in a request puts the newest training aside instead.
    """

    def __init__(self, bundle: Bundle, infer: ScanInfer | SlideInfer) -> None:
        super().__init__(bundle.description)
        self.bundle = bundle
        self.infer = infer

    def config(self) -> dict[str, Any]:
        return {"max_epochs": 20, "val_split": 0.2, "weights": self.bundle.choices(), "undo": False}

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        if request.get("undo"):
            return {"weights": self.bundle.undo()}
        own = [self._bag(each) for each in datastore.datalist() if self.bundle.reads(each["image"])]
        datalist = split(own, float(request.get("val_split", 0.2)))
        folder = self.bundle.new_training()
        folder.mkdir(parents=True)
        (folder / "datalist.json").write_text(json.dumps(datalist))
        keys = {"ckpt_dir": folder, "output_dir": folder, "datalist": folder / "datalist.json", "dataset_dir": "/"}
        pretrained = self.bundle.weights(request.get("weights"))
        self.bundle.run(
            "configs/train.json", **keys, pretrained=pretrained, max_epochs=int(request.get("max_epochs", 20))
        )
        return {"weights": folder.name}

    def _bag(self, labelled: dict[str, str]) -> dict[str, Any]:
        image, label = Path(labelled["image"]), Path(labelled["label"])
        if isinstance(self.infer, SlideInfer):
            image = self.infer.features(image)
        return {"image": str(image), "bag_id": Path(labelled["image"]).name, "label": label_in(label)}


def label_in(path: Path) -> Any:
    """Return the label of a whole scan or slide that a file holds."""
    if path.suffix != ".json":
        return int(bool((LoadImage(image_only=True)(path) > 0).any()))
    try:
        return json.loads(path.read_text())["label"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise refused(f'{path.name} holds no label: give {{"label": 0}} or {{"label": 1}}') from error


def split(bags: list[dict[str, Any]], share: float) -> dict[str, list[dict[str, Any]]]:
    """Return a datalist whose validation section has its share of each label, and at least one."""
    by_label: dict[Any, list[dict[str, Any]]] = {}
    for bag in bags:
        by_label.setdefault(bag["label"], []).append(bag)
    if len(bags) < FEWEST or min(map(len, by_label.values())) < 2 or len(by_label) < 2:
        counts = ", ".join(f"{len(of)} of {label}" for label, of in by_label.items()) or "none"
        raise refused(f"labels so far: {counts}; a training wants two or more of each kind")
    held = {label: min(max(1, round(share * len(of))), len(of) - 1) for label, of in by_label.items()}
    return {
        "training": [bag for label, of in by_label.items() for bag in of[held[label] :]],
        "validation": [bag for label, of in by_label.items() for bag in of[: held[label]]],
    }

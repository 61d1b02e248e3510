# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A MONAI Label app for what the stock one cannot do: answers in the segment's name, labels of whole scans, slides."""

from pathlib import Path
from typing import Any

from lib.bundles import Bundle, ScanInfer, SlideInfer, Training, label_in
from lib.certainty import LeastCertain, remember
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.tasks.activelearning.first import First


class MyApp(MONAILabelApp):
    """Reads scans and slides with the bundles of `--conf bundles FOLDER,FOLDER`, by default those in the app's `model`.

    Args:
        app_dir: this folder.
        studies: the scans or slides; for slides also their feature files.
        conf: `bundles`; `trained`, where weights of trainings go; `encoder`, a config of the slide bundle that makes
            features, such as configs/encoder_timm.json, where there are none yet.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        given = [Path(name.strip()) for name in conf.get("bundles", "").split(",") if name.strip()]
        folders = given or sorted(Path(app_dir, "model").glob("*"))
        kept = Path(conf.get("trained", str(Path(app_dir, "trained")))).resolve()
        self.bundles = [Bundle(folder.resolve(), kept / folder.name) for folder in folders]
        if not self.bundles:
            raise MONAILabelException(
                MONAILabelError.APP_INIT_ERROR, "there is no bundle: give one with --conf bundles FOLDER"
            )
        super().__init__(
            app_dir,
            studies,
            conf,
            name="Smooth MIL",
            description="which scan or slide, and where, learned from labels of whole ones; research use only",
            version=self.bundles[0].version,
        )

    def init_infers(self) -> dict[str, Any]:
        tasks = (SlideInfer(each, self.conf) if each.of_slides else ScanInfer(each, self.conf) for each in self.bundles)
        return {each.name: task for each, task in zip(self.bundles, tasks, strict=True)}

    def init_trainers(self) -> dict[str, Any]:
        return {each.name: Training(each, self._infers[each.name]) for each in self.bundles}

    def init_strategies(self) -> dict[str, Any]:
        return {"least certain": LeastCertain(self), "first": First()}

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Read one scan or slide, and remember how certain the answer was."""
        answer: dict[str, Any] = super().infer(request, datastore)
        remember(datastore or self.datastore(), request["image"], request["model"], answer["params"])
        return answer

    def infer_wsi(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Read a slide, or a region of it, as one bag: MONAI Label would cut it into images."""
        if isinstance(self._infers.get(request.get("model")), SlideInfer):
            return self.infer(request, datastore)
        answer: dict[str, Any] = super().infer_wsi(request, datastore)
        return answer

    def on_save_label(self, image_id: str, label_id: str) -> None:
        """Refuse a label of a whole scan or slide that is none, and do not keep it."""
        file = Path(self.datastore().get_label_uri(label_id, DefaultLabelTag.FINAL))
        if file.suffix == ".json":
            try:
                label_in(file)
            except MONAILabelException:
                self.datastore().remove_label(label_id, DefaultLabelTag.FINAL)
                self.datastore().refresh()
                raise
        super().on_save_label(image_id, label_id)

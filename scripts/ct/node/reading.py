# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""A bundle that stays loaded and reads one study after the other, by the steps of its own inference.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from scripts.core.errors import InputError
from scripts.core.record import BagResult
from scripts.outputs.report import input_of


class StudyReader:
    """What reads a study and writes its results.

    Args:
        bundle: folder of the bundle.
        output_dir: of the results, a folder for each study.
        keys: of inference.json, as the command line gives them.
    """

    def __init__(self, bundle: Path, output_dir: Path, keys: Mapping[str, Any]) -> None:
        config = ConfigParser()
        config.read_config(bundle / "configs" / "inference.json")
        if unknown := next((key for key in keys if key not in config), None):
            raise InputError(f"--{unknown} is no key of inference.json: nothing would read it")
        config.update({"bundle_root": str(bundle), **keys, "output_dir": str(output_dir)})
        config.parse()
        config.get_parsed_content("run#0")  # takes up what the weights were trained as
        self.device = torch.device(config.get_parsed_content("device"))
        self.amp = bool(config.get_parsed_content("amp"))
        self.network = config.get_parsed_content("network")
        weights = torch.load(config.get_parsed_content("ckpt_path"), map_location=self.device, weights_only=True)
        self.network.load_state_dict(weights)
        self.network.eval()
        self.prepare, self.infer, self.finish = (
            config.get_parsed_content(key) for key in ("preprocessing", "inferer", "postprocessing")
        )

    @torch.no_grad()
    def read(self, study: str, folder: Path) -> BagResult:
        """Read the images in a folder; the results are named after the study."""
        given = {"image": str(folder), "bag_id": study}
        bag = self.prepare({**given, "input": input_of(given)})
        image, coords, mask = (bag[name][None].to(self.device) for name in ("image", "coords", "mask"))
        with torch.autocast(self.device.type, enabled=self.amp):
            answers = self.infer(image, self.network, coords=coords, mask=mask)
        result: BagResult = self.finish({**bag, "pred": answers[0]})["bag_result"]
        return result

# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""What MONAI Label 0.8.5 does with a bundle, step by step, and MONAI Deploy's own operator, each in its own process.

python viewers.py (label | deploy) BUNDLE IMAGE... prints a JSON line of each image: what came out, and where it lies.
"""

import importlib.util
import json
import resource
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import LoadImaged, SaveImaged

OPERATORS = Path(__file__).parents[2] / ".venv" / "deploy"  # where `make .venv/ready` puts the App SDK of MONAI Deploy


class Label:
    """The stock app `monaibundle`: a config that it keeps, and code that it imports anew at every step."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = str(bundle)
        self.config = ConfigParser()
        self.config.read_config(bundle / "configs" / "inference.json")
        self.config.config.update({"bundle_root": self.bundle})  # type: ignore[union-attr]
        self.network = self.parsed("network_def")
        self.network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
        self.network.eval()
        self.shown = self.parsed("displayable_configs")

    def parsed(self, key: str) -> Any:
        sys.path.insert(0, self.bundle)
        for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
            del sys.modules[name]
        self.config.config.update({"device": "cpu"})  # type: ignore[union-attr]
        found = self.config.get_parsed_content(key, instantiate=True)
        sys.path.remove(self.bundle)
        return found

    def answer(self, image: str) -> dict[str, Any]:
        data: dict[str, Any] = {"image": image, "image_path": image, "device": "cpu", **self.shown}
        self.config["displayable_configs"].update(self.shown)
        self.config.parse()
        for step in self.parsed("preprocessing").transforms:
            data = step(data)
        with torch.no_grad():
            answers = self.parsed("inferer")(data["image"][None], self.network)
        data["pred"] = answers[0]
        for step in self.parsed("postprocessing").transforms:
            if not isinstance(step, SaveImaged):
                data = step(data)
        assert isinstance(data["image"], MetaTensor)
        meta = data["image"].meta  # by which its `Restored` and its writer know the geometry
        assert list(data["pred"].shape[1:]) == list(meta["spatial_shape"])
        return {"pred": data["pred"][0].numpy(), "affine": np.asarray(meta["original_affine"]), **data["result"]}


class Deploy:
    """MONAI Deploy's own operator of bundles over a stand-in for Holoscan, which is no part of it."""

    def __init__(self, bundle: Path) -> None:
        operators = OPERATORS / "monai" / "deploy" / "operators"
        image = self._module("monai.deploy.core.domain.image", operators.parent / "core" / "domain" / "image.py")
        core = self._stub("monai.deploy.core", Image=image.Image, IOType=SimpleNamespace(IN_MEMORY=1, DISK=2))
        for name in ("AppContext", "Fragment", "OperatorSpec"):
            setattr(core, name, object)
        core.Operator = type("Operator", (), {"__init__": lambda self, *_, **__: None})
        self._module("monai.deploy.utils.importutil", operators.parent / "utils" / "importutil.py")
        self._stub("monai.deploy.operators").__path__ = [str(operators)]
        of_bundles = importlib.import_module("monai.deploy.operators.monai_bundle_inference_operator")
        self.image, ports = image.Image, ("image", "pred")
        self.operator = of_bundles.MonaiBundleInferenceOperator(
            None,
            app_context=SimpleNamespace(models=None),
            input_mapping=[of_bundles.IOMapping(ports[0], image.Image, 1)],
            output_mapping=[of_bundles.IOMapping(ports[1], image.Image, 1)],
            bundle_path=bundle,
        )

    @staticmethod
    def _stub(name: str, **attributes: Any) -> Any:
        made: Any = ModuleType(name)
        made.__dict__.update(attributes)
        sys.modules[name] = made
        return made

    def _module(self, name: str, path: Path) -> Any:
        for number in range(2, name.count(".") + 1):
            parent = ".".join(name.split(".")[:number])
            if parent not in sys.modules:
                self._stub(parent).__path__ = [str(OPERATORS.joinpath(*parent.split(".")))]
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        sys.modules[name] = made
        spec.loader.exec_module(made)
        return made

    def answer(self, image: str) -> dict[str, Any]:
        """What its loader of NIfTI gives goes in: a volume and its affine, and neither path nor positions."""
        read = LoadImaged("image", image_only=True)({"image": image})["image"]
        affine = read.affine.numpy()
        about = {"affine": affine, "original_affine": affine, "spacing": (1, 1, 1)}
        about["original_channel_dim"] = "no_channel"
        given = self.image(read.numpy(), about)
        sent: dict[str, Any] = {}
        told: dict[str, Any] = {}
        finish = self.operator.post_process

        def keep(*args: Any, **keys: Any) -> Any:
            out = finish(*args, **keys)
            told.update(out["result"], affine=out["pred"].affine.numpy())
            return out

        self.operator.post_process = keep
        output = SimpleNamespace(emit=lambda value, name: sent.update({name: value}))
        self.operator.compute(SimpleNamespace(receive=lambda _: given), output, SimpleNamespace())
        self.operator.post_process = finish
        return {"pred": np.swapaxes(sent["pred"].asnumpy(), 0, 2), **told}


def main(viewer: str, bundle: str, *images: str) -> None:
    """Print what a viewer is answered of each image."""
    server = Label(Path(bundle)) if viewer == "label" else Deploy(Path(bundle))
    for image in images:
        told = server.answer(image)
        marks = told.pop("pred")
        told["dtype"], told["shape"] = str(marks.dtype), marks.shape
        told["marked"] = [np.unique(np.nonzero(marks)[axis]).tolist() for axis in range(3)]
        told["affine"] = told["affine"].tolist()
        told["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])

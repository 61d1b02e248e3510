# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0

import json
import os
import shutil
import sys
import tempfile
import unittest

import h5py
import numpy as np
from monai.bundle import ConfigWorkflow

BUNDLE = "models/pathology_wsi_smooth_mil"
SECTIONS = {"training": range(6), "validation": range(6, 8), "test": range(8, 10)}
SMALL = {"max_epochs": 1, "num_workers": 0}


class TestPathologyWSI(unittest.TestCase):
    def setUp(self):
        sys.path = [BUNDLE, *sys.path]
        self.dataset_dir = tempfile.mkdtemp()
        with open(os.path.join(BUNDLE, "configs", "inference.json")) as file:
            columns = json.load(file)["in_features"]
        datalist = {}
        for section, numbers in SECTIONS.items():
            datalist[section] = [{"image": f"{k}.h5", "label": k % 2} for k in numbers]
            for k in numbers:
                coords = 256 * np.stack(np.meshgrid(np.arange(6), np.arange(5)), axis=-1).reshape(-1, 2)
                with h5py.File(os.path.join(self.dataset_dir, f"{k}.h5"), "w") as file:  # as CLAM writes them
                    rng = np.random.default_rng(k)
                    file["features"] = rng.normal(size=(len(coords), columns)).astype(np.float32)
                    file["coords"] = coords
        with open(os.path.join(self.dataset_dir, "datalist.json"), "w") as file:
            json.dump(datalist, file)
        self.keys = {
            "bundle_root": BUNDLE,
            "dataset_dir": self.dataset_dir,
            "output_dir": os.path.join(self.dataset_dir, "eval"),
        }

    def tearDown(self):
        shutil.rmtree(self.dataset_dir)

    def run_workflow(self, kind, files, **keys):
        workflow = ConfigWorkflow(
            workflow_type=kind,
            config_file=[os.path.join(BUNDLE, "configs", f"{name}.json") for name in files],
            logging_file=os.path.join(BUNDLE, "configs/logging.conf"),
            meta_file=os.path.join(BUNDLE, "configs/metadata.json"),
            **self.keys,
            **keys,
        )
        workflow.initialize()
        check_result = workflow.check_properties()
        if check_result is not None and len(check_result) > 0:
            raise ValueError(f"check properties for {files} failed: {check_result}")
        workflow.run()
        workflow.finalize()

    def test_train_eval_infer(self):
        trained = os.path.join(self.dataset_dir, "models")
        self.run_workflow("train", ["train"], ckpt_dir=trained, **SMALL)
        self.run_workflow("train", ["train", "evaluate"], ckpt_dir=trained, **SMALL)
        assert os.path.exists(os.path.join(self.dataset_dir, "eval", "metrics.json"))

    def test_infer_with_the_weights_of_the_bundle(self):
        self.run_workflow("infer", ["inference"])
        assert os.path.exists(os.path.join(self.dataset_dir, "eval", "summary.csv"))


if __name__ == "__main__":
    unittest.main()

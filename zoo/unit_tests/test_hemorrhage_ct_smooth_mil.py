# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0

import json
import os
import shutil
import sys
import tempfile
import unittest

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow

BUNDLE = "models/hemorrhage_ct_smooth_mil"
SECTIONS = {"training": range(6), "validation": range(6, 8), "test": range(8, 10)}
SMALL = {"max_epochs": 1, "num_workers": 0}


class TestHemorrhageCT(unittest.TestCase):
    def setUp(self):
        sys.path = [BUNDLE, *sys.path]
        self.dataset_dir = tempfile.mkdtemp()
        datalist = {}
        for section, numbers in SECTIONS.items():
            datalist[section] = [{"image": f"{k}.nii.gz", "label": k % 2} for k in numbers]
            for k in numbers:
                volume = np.random.default_rng(k).integers(0, 80, (64, 64, 9)).astype(np.int16)
                nib.save(nib.Nifti1Image(volume, np.diag([4, 4, 5, 1])), os.path.join(self.dataset_dir, f"{k}.nii.gz"))
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

# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0

import json
import os
import shutil
import sys
import tempfile
import unittest

import numpy as np
from monai.bundle import ConfigWorkflow

SECTIONS = {"training": range(6), "validation": range(6, 8), "test": range(8, 10)}
SMALL = {"max_epochs": 1, "num_workers": 0}


class BundleCase(unittest.TestCase):
    """Ten bags of noise in a folder of their own, every other one positive, and the workflows of a bundle on them."""

    bundle = ""  # its name
    ending = ""  # of the file of a bag

    def setUp(self):
        self.folder = os.path.join("models", self.bundle)
        sys.path = [self.folder, *sys.path]
        self.dataset_dir = tempfile.mkdtemp()
        datalist = {}
        for section, numbers in SECTIONS.items():
            datalist[section] = [{"image": f"{k}{self.ending}", "label": k % 2} for k in numbers]
            for k in numbers:
                self.write_bag(os.path.join(self.dataset_dir, f"{k}{self.ending}"), np.random.default_rng(k))
        with open(os.path.join(self.dataset_dir, "datalist.json"), "w") as file:
            json.dump(datalist, file)
        self.trained = os.path.join(self.dataset_dir, "models")
        self.output_dir = os.path.join(self.dataset_dir, "eval")

    def tearDown(self):
        shutil.rmtree(self.dataset_dir)

    def write_bag(self, path, rng):
        raise NotImplementedError

    def run_workflow(self, kind, files, **keys):
        workflow = ConfigWorkflow(
            workflow_type=kind,
            config_file=[os.path.join(self.folder, "configs", f"{name}.json") for name in files],
            logging_file=os.path.join(self.folder, "configs/logging.conf"),
            meta_file=os.path.join(self.folder, "configs/metadata.json"),
            bundle_root=self.folder,
            dataset_dir=self.dataset_dir,
            output_dir=self.output_dir,
            **keys,
        )
        workflow.initialize()
        check_result = workflow.check_properties()
        if check_result is not None and len(check_result) > 0:
            raise ValueError(f"check properties for {files} failed: {check_result}")
        workflow.run()
        workflow.finalize()


class HeadCTCase(BundleCase):
    bundle = "hemorrhage_ct_smooth_mil"
    ending = ".nii.gz"

    def write_bag(self, path, rng):
        import nibabel as nib

        volume = rng.integers(0, 80, (64, 64, 9)).astype(np.int16)
        nib.save(nib.Nifti1Image(volume, np.diag([4, 4, 5, 1])), path)


class SlideCase(BundleCase):
    bundle = "pathology_wsi_smooth_mil"
    ending = ".h5"

    def write_bag(self, path, rng):
        import h5py

        with open(os.path.join(self.folder, "configs", "inference.json")) as file:
            columns = json.load(file)["in_features"]
        coords = 256 * np.stack(np.meshgrid(np.arange(6), np.arange(5)), axis=-1).reshape(-1, 2)
        with h5py.File(path, "w") as file:  # as CLAM writes them
            file["features"] = rng.normal(size=(len(coords), columns)).astype(np.float32)
            file["coords"] = coords


class OnOneProcess:
    """Beside a BundleCase: everything that a bundle does."""

    def test_train_eval_infer(self):
        self.run_workflow("train", ["train"], ckpt_dir=self.trained, **SMALL)
        self.run_workflow("train", ["train", "evaluate"], ckpt_dir=self.trained, **SMALL)
        assert os.path.exists(os.path.join(self.output_dir, "metrics.json"))

    def test_infer_with_the_weights_of_the_bundle(self):
        self.run_workflow("infer", ["inference"])
        assert os.path.exists(os.path.join(self.output_dir, "summary.csv"))


class OnTwoProcesses:
    """Beside a BundleCase: its training, of which each process runs a part."""

    def test_train_on_two_processes(self):
        self.run_workflow("train", ["train", "multi_gpu_train"], ckpt_dir=self.trained, **SMALL)

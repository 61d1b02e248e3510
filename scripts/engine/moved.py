# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""Where what a config of 0.4.0 names as a `_target_` is now: such a config ends in one line that says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scripts.core.errors import InputError

# module of 0.4.0, module of today, what moved (old=new where it got another name); all below `scripts.`
_TABLE = """
cohorts              engine.evaluator      BagEvaluator ReadableBags
curriculum           engine.training       Curriculum
data.augment         ct.transforms         RandSliceAffined RandSliceDropd
data.backbones       wsi.encoders          timm_model
data.bags            core.bags             bags_to_read balanced_weights load_bags number_of_classes
data.ct              ct.transforms         ScanBagd SliceWindowsd
data.dicom           ct.reader             SeriesReader
data.extraction      wsi.encode            FeatureExtractor
data.patches         wsi.check             described=checked_bags
data.patches         wsi.features.files    find_features
data.patches         wsi.reader            FeatureReader read_blocks
data.patches         wsi.transforms        PatchBagd PatchBlocksd collate_bags one_bag
data.results         core.record           BagResultd ModelCard SignResultd
data.scans           ct.scans              find_scans
data.slice_features  ct.encode             SliceEncoder SliceFeatureExtractor
data.slice_features  ct.features           SliceFeaturesd find_slice_features
data.tissue          wsi.slides.tissue     ChromaMask
exporting            engine.onnx           export_onnx
inferers             engine.evaluator      BagInferer PrepareBagInBlocks StreamingInferer
networks             wsi.encoders          SeededTileCNN
networks.encoders    wsi.encoders          SeededTileCNN TileEncoder
origins              engine.provenance     RememberTraining origin_of_bags trained_with
origins              engine.launch         require_network=prepare_run
outputs.cohort       outputs.report        CohortReport ResultsFolder recipe
outputs.dicom_sr     ct.outputs.report     SaveReportd
outputs.files        outputs.result_json   SaveResultd
outputs.geojson      wsi.outputs.geojson   SaveGeoJSONd
outputs.label_map    ct.outputs.label_map  SaveLabelMapd
outputs.pictures     ct.outputs.picture    DrawScand
outputs.slide_pictures  wsi.outputs.map    DrawSlided
resuming             engine.training       ResumeTraining
running              engine.launch         prepare_run
"""


def _moves() -> Iterator[tuple[str, str]]:
    for old, new, *names in map(str.split, _TABLE.strip().splitlines()):
        for name in names:
            before, _, after = name.partition("=")
            yield f"scripts.{old}.{before}", f"scripts.{new}.{after or before}"


MOVED: Mapping[str, str] = dict(_moves())


def refuse_moved(config: Any) -> None:
    """Refuse a config, or a part of one, that names a path of 0.4.0."""
    if isinstance(config, Mapping):
        target = config.get("_target_")
        if target in MOVED:
            raise InputError(moved_line(str(target)))
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for part in config:
            refuse_moved(part)


def moved_line(old: str) -> str:
    """Return what to tell of a path of 0.4.0."""
    return f"{old} of 0.4.0 is {MOVED[old]} now: write that into the config that names it"

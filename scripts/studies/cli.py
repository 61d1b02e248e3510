# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The command line of studies: `python -m scripts calibrate`, `compare`, `crossval`, `search`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.core.cli import path_or_none


def calibrate(
    results: str, weights: str, labels: str | None = None, target: str = "sensitivity 0.95", coverage: float = 0.9
) -> None:
    """Fit threshold and probabilities of a network to the labelled bags of a site, without training.

    RESULTS is the output folder of an evaluation or an inference. Scaling of probabilities, threshold and conformal
    sets are written beside the weights, where evaluation and inference take them up; the file that was there is kept
    under another name. The figures before and after are of the very bags that are fitted to: judge on others.

    Args:
        results: the folder with summary.csv.
        weights: the model.pt that the results are of.
        labels: a csv with the columns bag_id and label (0 or 1; of several classes the name), for bags without one.
        target: by what the threshold is chosen: "sensitivity 0.95", "specificity 0.9" or "youden".
        coverage: the least share of the bags of each class whose conformal set holds their class.
    """
    from scripts.studies.calibrate import fit_to_site

    fit_to_site(Path(str(results)), Path(str(weights)), path_or_none(labels), str(target), coverage)


def compare(a: str, b: str, output: str | None = None) -> None:
    """Compare two evaluations of the same bags: each figure of A less that of B, with its 95 % interval.

    The AUROC of bags is compared by DeLong's paired test, the others by a bootstrap that draws the same bags for both.
    Where both wrote instances.csv, also how alike each ranks the instances of a bag, by Spearman's correlation: between
    two seeds or two epochs of one network, that is how stable a score is.

    Args:
        a: the output folder of an evaluation.
        b: that of another one.
        output: a JSON file for the comparison.
    """
    from scripts.studies.compare import compare_results

    compare_results(Path(str(a)), Path(str(b)), path_or_none(output))


def crossval(
    wing: str,
    folder: str,
    output_dir: str = "crossval",
    folds: int = 5,
    repeats: int = 1,
    jobs: int = 1,
    config: str | None = None,
    datalist: str | None = None,
    seed: int = 0,
    **overrides: Any,
) -> None:
    """Cross-validate a training: every bag is predicted by a network that saw none of its patient.

    The bags are those of the sections training and validation; the test section stays closed. Each fold is a run of
    train.json and one of evaluate.json, in OUTPUT_DIR/repeat_R/fold_K with its datalist, model, results and log; of the
    bags that it trains with a fifth, by patient, stops it early and sets its operating point. Any other flag is a key
    of these configs, such as --max_epochs 20. Given again after an interruption, the command does what is left.

    OUTPUT_DIR/metrics.json has each figure over all bags, out of fold, and its mean and deviation over the folds;
    summary.csv, instances.csv and report.html the predictions of the first repeat; models/model.pt is the ensemble of
    all networks.

    Args:
        wing: ct or wsi.
        folder: the --dataset_dir of training.
        output_dir: folder of the study.
        folds: into how many parts the patients of each class are dealt.
        repeats: how often, each time anew.
        jobs: folds at a time, which share the cores.
        config: configs behind train.json, such as "on_features.json,smap.json"; of the bundle, or files of your own.
        datalist: by default FOLDER/datalist.json.
        seed: of the folds and of the trainings.
    """
    from scripts.studies.crossval import cross_validate
    from scripts.studies.runs import at_least, study_of

    for value, least, flag in ((folds, 2, "folds"), (repeats, 1, "repeats"), (seed, 0, "seed")):
        at_least(value, least, flag)
    cross_validate(study_of(wing, folder, output_dir, datalist, config, jobs, overrides), folds, repeats, seed)


def search(
    wing: str,
    folder: str,
    grid: str,
    output_dir: str = "search",
    random: int | None = None,
    jobs: int = 1,
    config: str | None = None,
    datalist: str | None = None,
    seed: int = 0,
    **overrides: Any,
) -> None:
    """Search for the settings of a training that are best on the validation section; the test section stays closed.

    GRID is a JSON file of keys and the values to try, such as {"learning_rate": [0.001, 0.0001],
    "network_def#aggregator#alpha": [0.3, 0.5, 0.7]}. Each combination is a run of train.json on the training section
    and one of evaluate.json on the validation section, in OUTPUT_DIR/candidate_N. They are compared by the key best_by,
    of the epoch that was kept. Any other flag is a key for all of them. Given again after an interruption, the command
    does what is left. OUTPUT_DIR/search.csv has a row for each, the best first.

    Args:
        wing: ct or wsi.
        folder: the --dataset_dir of training.
        grid: the JSON file.
        output_dir: folder of the study.
        random: try so many of the combinations, drawn by the seed; by default all.
        jobs: trainings at a time, which share the cores.
        config: configs behind train.json, such as "on_features.json,smap.json"; of the bundle, or files of your own.
        datalist: by default FOLDER/datalist.json.
        seed: of the trainings and of the draw.
    """
    from scripts.studies.runs import at_least, study_of
    from scripts.studies.search import read_grid, search_grid

    at_least(seed, 0, "seed")
    tried = read_grid(Path(str(grid)), overrides)
    study = study_of(wing, folder, output_dir, datalist, config, jobs, {**dict.fromkeys(tried), **overrides})
    search_grid(replace(study, keys=overrides), tried, random, seed)

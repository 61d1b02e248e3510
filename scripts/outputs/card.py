# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""model_card.md: a model card in the sections of MONAI's model zoo, with the items of CLAIM 2024."""

from collections.abc import Mapping, Sequence
from typing import Any

from scripts.core.record import RESEARCH_USE

TO_FILL_IN = "to be filled in"
STATED = (
    "name",
    "version",
    "authors",
    "task",
    "description",
    "intended_use",
    "data_type",
    "label_classes",
    "copyright",
)
CARD = """# Model Overview

### Authors

{authors}

### Tags

{unknown}

### Description

{name} {version}, weights sha256 {sha256}.
{description}. {task}. {research_use}.

## Data

- Kind: {data_type}
- Labels: {label_classes}
- Bags of this evaluation: {bags}; tables written {tables_written}
- Source and selection: {unknown}

## Training configuration

- Training: {training}; weights kept: {kept}
- Network and preprocessing: model.origin.json beside the weights
- Software that the bundle declares: {software}

### Input

{inputs}

### Output

{outputs}

## System Configuration

{unknown}

## Performance

Threshold: {threshold}

{performance}

## Limitations

- {intended_use}
- The intervals show the chance in drawing these bags; they say nothing of other scanners, sites or patients
- Others: {unknown}

## CLAIM 2024

{claim}

## Citation

{unknown}

# References

{references}

# License

{copyright}. The LICENSE of the bundle is of the software; of weights and data: {unknown}.
"""
CLAIM = """
1 Title names the AI technology|{task}
2 Abstract
3 Background, intended use|{intended_use}
4 Aims and hypotheses
5 Prospective or retrospective
6 Goal of the study
7 Sources of data
8 Inclusion and exclusion
9 Preprocessing|model.origin.json beside the weights
10 Selection of subsets
11 De-identification
12 Missing data|{statuses}: see summary.csv
13 Acquisition of images
14 Definition of the reference standard
15 Rationale of the reference standard
16 Source of the annotations
17 Annotation of the test set
18 Variability of raters
19 Assignment to partitions
20 Level at which partitions are disjoint
21 Intended sample size
22 Model|{description}; Input and Output above
23 Software|{software}
24 Initialization of parameters
25 Training|{training}
26 Selection of the final model|{kept}
27 Ensembling
28 Metrics|Performance above
29 Uncertainty|95 % intervals over bags, Performance above
30 Robustness
31 Explainability|instances ranked and flagged by their {score}; report.html
32 Internal data
33 External data
34 Registration of a trial
35 Numbers included and excluded|{bags}
36 Characteristics of the cases
37 Performance|Performance above, report.html
38 Diagnostic performance and precision|Performance above, report.html
39 Failure analysis|report.html, cases worth looking at
40 Limitations|above
41 Implications for practice
42 Study protocol
43 Availability of software, model and data|the weights have sha256 {sha256}; others are {unknown}
44 Funding
"""  # the 2024 update, in our words; what stands behind a bar is known


def model_card(content: Mapping[str, Any]) -> str:
    """Return the card of the content of report.json; what nobody stated is left to be filled in."""
    bundle, cohort, training = content["bundle"] or {}, content["cohort"], content["training"] or {}
    own = {name: bundle.get(f"{name}_version") for name in ("monai", "pytorch", "numpy")}
    packages = {**own, **bundle.get("required_packages_version", {})}
    statuses = ", ".join(f"{count} bags {status}" for status, count in cohort["bags"].items())
    epochs = max((len(points) for points in training.get("curves", {}).values()), default=0)
    facts = {
        **{key: str(bundle.get(key) or TO_FILL_IN) for key in STATED},
        "unknown": TO_FILL_IN,
        "statuses": statuses or "no bag",
        "bags": f"{statuses}; {cohort['labelled']} with a label, {cohort['positive']} of them positive",
        "software": ", ".join(f"{name} {version}" for name, version in packages.items() if version) or TO_FILL_IN,
        "training": f"{epochs} epochs, run {training.get('run_name') or TO_FILL_IN}" if epochs else TO_FILL_IN,
        "kept": TO_FILL_IN if training.get("kept") is None else f"epoch {training['kept']}",
        "score": " or ".join(content["score"]["names"]) + " score" if content.get("score") else TO_FILL_IN,
        "sha256": content["weights_sha256"] or TO_FILL_IN,
    }
    formats = bundle.get("network_data_format", {})
    return CARD.format(
        **facts,
        research_use=RESEARCH_USE.capitalize(),
        tables_written=content["tables_written"],
        inputs=_arrays(formats.get("inputs", {})),
        outputs=_arrays(formats.get("outputs", {})),
        threshold=_threshold(content),
        performance=_performance(content["figures"]),
        claim=_claim(facts),
        references="\n".join(f"- {each}" for each in bundle.get("references", [])) or TO_FILL_IN,
    )


def _arrays(formats: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [name, of.get("format", ""), of.get("spatial_shape", ""), of.get("dtype", "")] for name, of in formats.items()
    ]
    return _markdown(["name", "content", "shape", "type"], rows) if rows else TO_FILL_IN


def _threshold(content: Mapping[str, Any]) -> str:
    values = " to ".join(f"{each:.3f}" for each in dict.fromkeys(content["threshold"] or []))
    return f"{values or 'none'} ({content['threshold_origin'] or 'origin not known'})"


def _performance(figures: Mapping[str, Mapping[str, float | None]]) -> str:
    def text(value: float | None) -> str:
        return "not defined" if value is None else f"{value:.3f}"

    rows = [[name, *(text(of.get(key)) for key in ("value", "low", "high"))] for name, of in figures.items()]
    return _markdown(["figure", "value", "95 % from", "to"], rows) if rows else "None: no bag has a label."


def _claim(facts: Mapping[str, object]) -> str:
    items = (line.partition("|") for line in CLAIM.strip().splitlines())
    return _markdown(
        ["item", "where or what"], [[item, known.format(**facts) or TO_FILL_IN] for item, _, known in items]
    )


def _markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

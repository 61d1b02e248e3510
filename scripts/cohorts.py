# Copyright (c) 2026 the smooth MIL bundle authors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Reading a cohort to its end: a bag that cannot be read is a failure to tell, not the end of the run."""

from __future__ import annotations

from typing import Any

from ignite.engine import Events
from monai.data import Dataset
from monai.engines import SupervisedEvaluator

from scripts.errors import input_error_message, is_empty_bag

# The keys under which a bag carries why there is no result of it.
FAILED = "failed"
EMPTY = "empty"  # as of a slide without tissue: no fault


class ReadableBags(Dataset):
    """A dataset in which a bag that cannot be read is {"bag_id", "failed"}, and an empty one is {"bag_id", "empty"}.

    Give its loader batches of one.
    """

    def _transform(self, index: int) -> Any:
        try:
            return super()._transform(index)
        except Exception as error:
            return {"bag_id": self.data[index]["bag_id"], **_reason(error)}


class BagEvaluator(SupervisedEvaluator):
    """An evaluator that passes on a failed or an empty bag as it is, and has nothing against an empty cohort."""

    def run(self) -> None:  # type: ignore[override]
        if len(self.data_loader) > 0:  # type: ignore[arg-type]
            super().run()
        else:
            self.fire_event(Events.EPOCH_COMPLETED)  # all is already there: report it

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> Any:
        (bag_id,) = batchdata["bag_id"]
        for key in (FAILED, EMPTY):
            if key in batchdata:
                return [{"bag_id": bag_id, key: batchdata[key][0]}]
        try:
            return super()._iteration(engine, batchdata)
        except Exception as error:
            return [{"bag_id": bag_id, **_reason(error)}]


def _reason(error: Exception) -> dict[str, str]:
    """What to tell of bad input; any other error is a fault of the program and goes on its way."""
    message = input_error_message(error)
    if message is None:
        raise error
    return {EMPTY if is_empty_bag(error) else FAILED: message}

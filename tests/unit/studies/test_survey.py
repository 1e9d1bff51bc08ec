"""The stages of the survey name what is there."""

import pytest

import regard
from regard.analysis.roles import ROLES
from regard.studies.head_survey import STAGES, detectors


@pytest.mark.parametrize("stage", STAGES)
def test_every_detector_is_an_analysis_or_a_role(stage):
    known = {entry.name for entry in regard.entries(kind="analysis")} | set(ROLES)
    assert set(detectors(stage)) <= known


def test_another_stage_is_named():
    with pytest.raises(LookupError, match=r"^stage: got 'recal', want one of .* \(did you mean 'recall'\?\)"):
        detectors("recal")

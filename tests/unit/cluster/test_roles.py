import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from zs_nemo.cluster.roles import STARTUP_LIMIT, Role, gather, start_all


def test_a_role_that_does_not_answer_in_time_is_named_with_its_log_and_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(wait=lambda pending, num_returns, timeout: ([], pending)))
    role = Role("policy-rank-0", None, Path("logs/policy-rank-0.log"))
    told = "no answer from policy-rank-0 within 5 s{}; logs: logs/policy-rank-0.log"
    with pytest.raises(TimeoutError) as error:
        gather([role], ["reference"], "export", 5.0)
    assert str(error.value) == f"export: {told.format('')}"
    with pytest.raises(TimeoutError) as error:
        start_all([role], ["reference"], 5.0)
    assert str(error.value) == f"start: {told.format(f' ({STARTUP_LIMIT})')}"
    assert not role.silence.is_asked

"""What no method can fit is refused before network and data are opened."""

import pytest
from torch import nn

from afterfit.errors import ConfigError
from afterfit.methods import METHODS
from afterfit.network.likelihoods import likelihood_named
from afterfit.plan.config import parse_config
from afterfit.plan.resolve import method_named, request_from_objects, request_of
from afterfit.store.directory import open_store

CONFIG = """\
name: tokens
network: {path: nowhere, auto: causal_lm}
data: {train: {path: nowhere.parquet}}
likelihood: {name: tokens}
"""


@pytest.mark.parametrize("name", METHODS)
def test_the_outputs_of_all_tokens_are_refused_with_the_remedy(name):
    method = method_named({"name": name})
    with pytest.raises(ConfigError, match="set `output` to `last_token`"):
        request_from_objects(nn.Linear(1, 1), {}, method, likelihood_named("categorical"), output="tokens")


@pytest.mark.parametrize("method", METHODS)
def test_the_tokens_likelihood_is_refused_before_any_work_with_the_remedy(method, tmp_path):
    says = rf"{method} needs exact cotangents.*`output: last_token`, or call `afterfit.rows.ggn_times`\.$"
    with pytest.raises(ConfigError, match=says):
        request_of(parse_config(CONFIG, [f"method.name={method}"]), open_store(str(tmp_path)))
    with pytest.raises(ConfigError, match=says):
        request_from_objects(
            nn.Linear(1, 1).train(), {}, method_named({"name": method}), likelihood_named("tokens", None)
        )

import federation
import pytest

from fedfisher_jax import merge_payloads
from fedfisher_jax.merge import fedfisher, fedlpa


@pytest.mark.slow
def test_fedlpa_is_kfac_of_the_labels():
    apply, _, _, captured = federation.net("dense")
    rule = fedlpa(apply, federation.LIKELIHOOD, captured=captured)
    same = fedfisher(apply, federation.LIKELIHOOD, kind="empirical", captured=captured)
    assert rule.name == "fedlpa"
    assert rule.measure == same.measure
    sent = federation.payloads(rule.measure, "dense")
    federation.close(merge_payloads(rule, sent).params, merge_payloads(same, sent).params, 0)

"Every check of the fused pass, of the slices that an accelerator gets."
import pytest
import test_fused

from cotmi.training import fused_linear_loss


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(fused_linear_loss, "WALKED", ())


globals().update({name: check for name, check in vars(test_fused).items() if name.startswith("test_")})

"""The slope of the average's warm-up, step by step.

After many steps the average has forgotten the first ones, whatever their decay was.
"""

import pytest
from torch import nn

from modules.weights.ema import EMA


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_the_decay_of_step_t_is_one_plus_t_over_ten_plus_t(decay):
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    ema = EMA(decay=decay, warmup=True).attach(layer)
    nn.init.zeros_(layer.weight)
    expected = 1.0
    for factor in (1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15):
        ema.update()
        expected *= min(decay, factor)
        average = ema.state_dict()["shadow"]["weight"].item()
        assert average == pytest.approx(expected, rel=1e-5)

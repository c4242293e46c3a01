"""Fine-tuning with low-rank adapters, by the training step of the other recipes.

The separator is frozen and gets adapters once its weights are loaded; the optimizer,
the EMA and the checkpoints hold the adapters alone. After the test the run's folder
holds `adapters.safetensors`.

With `lora_mode: gradient` the network sees the first batches once before training, to
choose the ranks of the adapters. They stay in `lora_ranks.json` beside the checkpoints,
so that a resume and `--test_only` find them.
"""

import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from speechbrain import Stage
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process
from torch import Tensor, nn
from torch.utils.data import DataLoader

from modules.lora.adapters import (
    adaptable,
    add_lora,
    lora_state_dict,
    matching,
    trainable_share,
)
from modules.lora.files import load_lora_weights, save_lora
from modules.lora.ranks import MODES, gradient_ranks, heuristic_ranks
from modules.losses.choice import masked_sum
from modules.runtime import distributed
from modules.runtime.batch_norm import freeze_statistics
from modules.runtime.errors import CheckpointMismatch, HparamsError, LoraError
from modules.runtime.files import write_text
from modules.runtime.randomness import seed_step
from recipes.config.schema import LoraSettings, MusicLoraSettings, SpeechLoraSettings
from recipes.music import MusicSeparation
from recipes.separation import Separation
from recipes.speech import SpeechSeparation

RANKS_FILE = "lora_ranks.json"
logger = logging.getLogger(__name__)


@register_checkpoint_hooks
class AdapterFile:
    """Keeps the adapters of a model in a checkpoint, as safetensors."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Tensor]:
        """Show the adapters to the checkpointer, which refuses NaN and Inf."""
        return lora_state_dict(self.model)

    @mark_as_saver
    def save(self, path: Path) -> None:
        """Write the file."""
        save_lora(self.model, path)

    @mark_as_loader
    def load(self, path: Path, end_of_epoch: bool) -> None:
        """Read the file; another base or other ranks are an error."""
        try:
            load_lora_weights(self.model, path)
        except LoraError as error:
            raise CheckpointMismatch(
                f"{error}; give the same settings as before, or another output_folder"
            ) from error


class Adapting(Separation):
    """Makes a task's Brain train adapters of `modules.separator`."""

    config: LoraSettings
    opt_class: Callable[[Any], torch.optim.Optimizer]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.config
        if config.lora_mode not in MODES:
            raise HparamsError(
                f"lora_mode={config.lora_mode}: use one of {', '.join(MODES)}"
            )
        if not config.pretrained:
            raise HparamsError(
                "pretrained: adapters need a trained model; give --pretrained=FOLDER"
            )
        if number := config.average_last or config.average_best:
            raise HparamsError(
                f"an average of {number} epochs: the mean of two adapters' "
                "factors is not that of their products; use ema_decay"
            )
        self.adapted = self.modules["separator"]
        make_optimizer = self.opt_class
        self.opt_class = lambda given: make_optimizer(trainable(given))
        del self.checkpointer.recoverables["separator"]
        self.checkpointer.add_recoverable("adapters", AdapterFile(self.adapted))
        if config.lora_mode != "gradient":
            self._adapt({})
        elif (ranks := distributed.run_on_main(self._read_ranks)) is not None:
            self._adapt(ranks)

    def fit(
        self, epoch_counter: Any, train_set: DataLoader, valid_set: Any = None
    ) -> None:
        """Choose the ranks by the gradient, unless they are chosen; then train."""
        if self.test_only:
            return
        if not hasattr(self.adapted, "lora_config"):
            with self.stop_request.later():
                gradients = self._gradients(train_set)
            ranks = distributed.run_on_main(self._choose_by_gradient, gradients)
            self._adapt(ranks)
        super().fit(epoch_counter, train_set, valid_set)

    def set_training(self) -> None:
        """Keep the statistics of BatchNorm: the adapters' file would not hold them."""
        super().set_training()
        freeze_statistics(self.modules)

    def on_stage_end(
        self, stage: Stage, stage_loss: float, epoch: int | None = None
    ) -> None:
        """Write the adapters that were tested."""
        super().on_stage_end(stage, stage_loss, epoch)
        adapted = hasattr(self.adapted, "lora_config")
        if stage == Stage.TEST and adapted and if_main_process():
            save_lora(self.adapted, self.output_folder / "adapters.safetensors")

    # ------------------------------------------------------------------ ranks

    def _adapt(self, chosen: dict[str, int]) -> None:
        """Freeze the network and add its adapters, of the chosen ranks."""
        config = self.config
        if config.lora_mode == "heuristic":
            chosen = heuristic_ranks(self.adapted, config.lora_rank)
        patterns = dict(config.layer_ranks or {})
        # The user's patterns come before the rule.
        rest = {k: v for k, v in chosen.items() if k not in patterns}
        add_lora(
            self.adapted,
            lora_rank=config.lora_rank,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            lora_max_rank=config.lora_max_rank,
            layer_ranks=patterns | rest,
            train_fully=config.train_fully,
        )
        if self.ema is not None:
            self.ema.attach(self.adapted)
        tensors = len(self.adapted.lora_config.ranks)
        share = trainable_share(self.adapted)
        logger.info(f"Adapters on {tensors} weights: {share:.2%} of the model trains")
        recurrent = [
            name
            for name, layer in self.adapted.named_modules()
            if isinstance(layer, nn.RNNBase)
        ]
        if recurrent:
            logger.warning(
                f"No adapters on recurrent layers ({', '.join(recurrent)}); "
                "--train_fully trains them as a whole"
            )

    def _gradients(self, train_set: Any) -> dict[str, Tensor]:
        """Sum the gradient of the loss by each weight over the first batches.

        The weights do not move, and all finite terms count, dropped or not. Weights
        whose rank a pattern of the user decides are left out.
        """
        config, model = self.config, self.adapted
        trained = [p for p in model.parameters() if p.requires_grad]
        weights = adaptable(model)
        decided = matching(list(config.layer_ranks or ()), weights, "layer_ranks")
        names = dict(model.named_parameters())
        decided += matching(config.train_fully, names, "train_fully")
        weights = {n: w for n, w in weights.items() if n not in decided}
        if not weights:
            return {}
        model.requires_grad_(False)
        for weight in weights.values():
            weight.requires_grad_(True)
        self.set_training()
        train_set.batch_sampler.set_position(1, first_step=0)
        first = itertools.islice(train_set, config.lora_gradient_steps)
        for step, batch in enumerate(distributed.agreed(first), start=1):
            batch = batch.to(self.device)
            seed_step(config.seed, distributed.rank(), 1, step)
            finite_B = batch.zero_nonfinite(self.largest_peak) & batch.counts_B
            with self.training_ctx:
                outputs = self.compute_forward(batch, Stage.TRAIN)
                terms = self.compute_objectives(outputs, batch, Stage.TRAIN)
            loss_BK = terms.loss_BK.float()
            counts_BK = terms.scorable_BK & finite_B[:, None] & loss_BK.isfinite()
            weights_K = loss_BK.new_tensor(self.term_weights)
            masked_sum(loss_BK, counts_BK, weights_K).backward()
        gradients = {}
        for name, weight in weights.items():
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            if distributed.is_distributed():
                dist.all_reduce(gradient)
            gradients[name] = gradient
            weight.grad = None
        for parameter in trained:
            parameter.requires_grad_(True)
        return gradients

    def _choose_by_gradient(self, gradients: dict[str, Tensor]) -> dict[str, int]:
        """Choose ranks by `gradient_ranks` and keep them in a file."""
        config = self.config
        limits = config.lora_min_rank, config.lora_max_rank
        ranks = gradient_ranks(gradients, config.lora_rank, *limits)
        text = json.dumps({"settings": self._settings(), "ranks": ranks}, indent=1)
        write_text(self._ranks_file, text)
        return ranks

    def _read_ranks(self) -> dict[str, int] | None:
        """Return the ranks that an earlier start of this run chose, if any did."""
        if not self._ranks_file.is_file():
            return None
        found = json.loads(self._ranks_file.read_text(encoding="utf-8"))
        for name, value in self._settings().items():
            if (old := found["settings"].get(name)) != value:
                raise HparamsError(
                    f"{self._ranks_file}: was chosen with {name}={old}, not {value}: "
                    "go on with that, or take another output_folder"
                )
        return found["ranks"]

    @property
    def _ranks_file(self) -> Path:
        return Path(self.checkpointer.checkpoints_dir) / RANKS_FILE

    def _settings(self) -> dict[str, object]:
        """Return what the ranks depend on, in the types of JSON."""
        names = ("lora_rank", "lora_min_rank", "lora_max_rank", "lora_gradient_steps")
        return {
            **{name: getattr(self.config, name) for name in names},
            "layer_ranks": dict(self.config.layer_ranks or {}),
            "train_fully": list(self.config.train_fully),
        }


class MusicLora(Adapting, MusicSeparation):
    """Trains adapters of a music separator."""

    settings_class = MusicLoraSettings
    config: MusicLoraSettings


class SpeechLora(Adapting, SpeechSeparation):
    """Trains adapters of a speech separator."""

    settings_class = SpeechLoraSettings
    config: SpeechLoraSettings


def trainable(given: Any) -> list:
    """Leave the frozen ones out of parameters, or of an optimizer's groups of them."""
    return [
        {**item, "params": trainable(item["params"])}
        if isinstance(item, dict)
        else item
        for item in given
        if isinstance(item, dict) or item.requires_grad
    ]

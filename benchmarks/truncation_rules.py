"""Train one network per rule of truncation on the same batches, and compare them.

All networks start from equal weights and see equal examples with equal augmentation in
equal order, so that they differ in the end only by what the rules left out. The
networks are independent as long as gradients are not clipped and the optimizer treats
each weight by itself.

The rule `coteaching` has two networks, of which each chooses for the other; its second
begins with the same initial values in another order. A name in `trusted` is not a rule
but a table of labels, and what to do with it: all losses count, as the labels say.

Legend: B batch, N examples of the global batch, S source, C channel, T sample, F frame,
K = networks x stems, network by network.
"""

import copy
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from speechbrain import Stage
from speechbrain.utils.distributed import if_main_process
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data_prep.music.audit import audit
from modules.data.batch import Batch
from modules.data.label_actions import Trust, act_on_labels
from modules.data.labels import read_labels
from modules.data.manifest import read_manifest
from modules.losses.choice import Choice, Terms
from modules.losses.selection import PooledTruncation, Selector, truncation
from recipes.config.schema import MusicSettings, setting
from recipes.music import MusicSeparation
from recipes.separation import Separation

PEER = {"coteaching": "peer"}  # the name of a rule's second network


def names_of(rules: Sequence[str]) -> list[str]:
    """Return the names of the networks, rule by rule.

    >>> names_of(["none", "coteaching"])
    ['none', 'coteaching', 'peer']
    """
    return [name for r in rules for name in (r, *([PEER[r]] if r in PEER else []))]


@torch.no_grad()
def shuffle_weights(network: nn.Module) -> None:
    """Give each tensor its initial values in another order."""
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        order = torch.randperm(weight.numel(), generator=generator)
        weight.copy_(weight.flatten()[order].view_as(weight))


class RuleNetworks(nn.Module):
    """Copies of a separator that share their input, with sources named rule_stem.

    Arguments
    ---------
    separator : nn.Module
        Maps [B, C, T] to [B, S, C, T]; has `sources`, `sample_rate` and `segment`.
    rules : Sequence[str]
        The rules, each of which has one copy, or two.
    cuda_graphs : bool
        Train as a CUDA graph for each network, all of them side by side: for networks
        so small that the host cannot start their kernels fast enough.
    """

    def __init__(
        self, separator: nn.Module, rules: Sequence[str], cuda_graphs: bool = False
    ) -> None:
        super().__init__()
        self.cuda_graphs = cuda_graphs
        self.streams: list[torch.cuda.Stream] = []
        names = names_of(rules)
        self.networks = nn.ModuleDict({n: copy.deepcopy(separator) for n in names})
        for peer in set(PEER.values()) & set(names):
            shuffle_weights(self.networks[peer])
        self.sources = [f"{n}_{stem}" for n in names for stem in separator.sources]
        self.sample_rate, self.segment = separator.sample_rate, separator.segment

    def forward(self, mixture_BCT: Tensor) -> Tensor:
        """Map [B, C, T] to [B, K, C, T]."""
        networks = self.networks.values()
        if not (self.training and self.cuda_graphs):
            return torch.cat([network(mixture_BCT) for network in networks], dim=1)
        if not self.streams:
            for network in networks:  # all batches must have the shape of the first
                torch.cuda.make_graphed_callables(network, (mixture_BCT.clone(),))
            self.streams = [torch.cuda.Stream() for _ in networks]
        main, estimates = torch.cuda.current_stream(), []
        for stream, network in zip(self.streams, networks, strict=True):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                estimates.append(network(mixture_BCT))
        for stream in self.streams:
            main.wait_stream(stream)
        return torch.cat(estimates, dim=1)


class CoTeaching(PooledTruncation):
    """Let each of two networks choose for the other (Han et al., NeurIPS 2018).

    The columns are the losses of both: [N, 2 K]. What looks right to one network trains
    the other, which has made other mistakes.
    """

    def __call__(self, loss_NK: Tensor) -> Tensor:
        one_NK, other_NK = super().__call__(loss_NK).chunk(2, dim=1)
        return torch.cat([other_NK, one_NK], dim=1)


class RuleSelectors(Selector):
    """One selector per rule, which sees the columns of its own networks' losses.

    Arguments
    ---------
    rules : Sequence[str]
        Names that `modules.losses.selection.truncation` knows, or `coteaching`.
    memory : int
        Losses per stem that `running`, `dropping` and `soft` remember.
    frame_seconds : float
        Length of the frames that the rule `frames` chooses from.
    trusted : Sequence[str] | None
        Those of `rules` that keep everything.
    """

    def __init__(
        self,
        rules: Sequence[str],
        memory: int = 1000,
        frame_seconds: float = 1.0,
        trusted: Sequence[str] | None = None,
    ) -> None:
        self.selectors = {
            rule: CoTeaching(1.0)
            if rule in PEER
            else truncation(
                "none" if rule in (trusted or ()) else rule, 1.0, memory, frame_seconds
            )
            for rule in rules
        }
        self.frame_seconds = frame_seconds if "frames" in rules else None

    def __call__(self, loss: Tensor) -> Tensor:
        """Return weights of the terms, [N, K], or of their frames, [N, K, F]."""
        columns = loss.chunk(len(names_of([*self.selectors])), dim=1)
        at, weights = 0, []
        for rule, select in self.selectors.items():
            count = 2 if rule in PEER else 1
            part = torch.cat(columns[at : at + count], dim=1)
            if part.dim() == 3 and select.frame_seconds is None:
                weight = select(part.mean(2))[..., None].expand_as(part)
            else:
                weight = select(part)
            weights.append(weight.float())
            at += count
        return torch.cat(weights, dim=1)

    def enter_phase(self, quantile: float, batches: int) -> None:
        """Hand the phase to every rule."""
        for selector in self.selectors.values():
            selector.enter_phase(quantile, batches)

    def check(self, batch_size: int, world_size: int) -> None:
        """Run every selector's check."""
        for selector in self.selectors.values():
            selector.check(batch_size, world_size)

    def state_dict(self) -> dict:
        """Return the state of every rule."""
        return {rule: s.state_dict() for rule, s in self.selectors.items()}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a checkpoint."""
        for rule, selector in self.selectors.items():
            selector.load_state_dict(state[rule])


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuleSettings(MusicSettings):
    """What the comparison reads besides."""

    rules: list[str] = setting()
    trusted: dict[str, list[str]] | None = setting()
    audited: str | None = setting(free=True)


class RuleComparison(MusicSeparation):
    """`MusicSeparation` for `RuleNetworks`, with a report that compares the rules."""

    settings_class: type[RuleSettings] = RuleSettings
    config: RuleSettings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rules = names_of(self.config.rules)
        self.term_names = [f"{rule}_{s}" for rule in self.rules for s in self.stems]
        self.term_weights = self.stem_weights * len(self.rules)
        self.trusts: dict[str, Trust] = {}
        self.totals = [*self.totals, *(f"nsdr_{rule}" for rule in self.rules)]

    def compute_objectives(
        self, predictions: Tensor, batch: Batch, stage: Stage
    ) -> Terms:
        """Return the losses of all networks, rule by rule."""
        parts = []
        for rule, est_BSCT in zip(
            self.rules, predictions.chunk(len(self.rules), dim=1), strict=True
        ):
            self.trust = self.trusts[rule]
            part = super().compute_objectives(est_BSCT, batch, stage)
            if self.config.trusted and not self.trust:
                part = part._replace(weight_BK=torch.ones_like(part.loss_BK))
            if parts:  # the networks have the same targets, whose silence counts once
                part = part._replace(silent_BK=part.silent_BK & False)
            parts.append(part)
        columns = zip(*parts, strict=True)
        return Terms(*(None if c[0] is None else torch.cat(c, dim=1) for c in columns))

    def make_loaders(
        self, manifests: dict[str, str]
    ) -> tuple[DataLoader | None, DataLoader | None, DataLoader | None]:
        """Read the tables of labels too: other rules trust what `--labels` says."""
        loaders = super().make_loaders(manifests)
        self.trusts = dict.fromkeys(self.rules, self.trust)
        if not self.test_only:
            rows = read_manifest(manifests["train"], len(self.stems), stems=True)
            for rule, (action, path) in (self.config.trusted or {}).items():
                given = rows, read_labels(path), self.stems, action
                self.trusts[rule] = act_on_labels(*given)[1]
        return loaders

    def on_choice(self, choice: Choice, batch: Batch) -> None:
        """Keep the losses of the last rule's stems."""
        Separation.on_choice(self, choice, batch)
        self.keep_losses(choice, slice(-len(self.stems), None))

    def score(
        self, est_ST: Tensor, target_ST: Tensor, mix_T: Tensor, stage: Stage
    ) -> dict[str, float | None]:
        """Return every network's scores, named by their rule, and their mean."""
        scores: dict[str, float | None] = {}
        means = []
        for rule, est_SCT in zip(
            self.rules, est_ST.chunk(len(self.rules)), strict=True
        ):
            own = super().score(est_SCT, target_ST, mix_T, stage)
            means.append(own["nsdr"])
            scores |= {f"nsdr_{rule}": own.pop("nsdr")}
            for name, value in own.items():
                known = (m for m in self.metrics if f"{name}_".startswith(f"{m}_"))
                metric = next(known, name)
                scores[f"{metric}_{rule}{name.removeprefix(metric)}"] = value
        # A song of silence has no score from any network.
        found = [mean for mean in means if mean is not None]
        return {"nsdr": math.fsum(found) / len(found) if found else None} | scores

    def reported(self, summary: dict) -> dict:
        """Reduce the summary to each rule's mean over the stems."""
        names = [f"{metric}_{r}" for metric in self.metrics for r in self.rules]
        metrics = summary["metrics"]
        return summary | {"metrics": {name: metrics[name] for name in names}}

    def report(self) -> None:
        """Print a row of scores per rule, then the audit of the labels."""
        super().report()
        if not if_main_process() or self.summary is None:
            return
        means = self.summary["metrics"]
        others = [metric for metric in self.metrics if metric != "nsdr"]
        columns = ["nsdr", *(f"nsdr {stem}" for stem in self.stems), *others]
        print("\n" + " ".join(f"{name:>12}" for name in ["rule", *columns]))
        for rule in self.rules:
            stems = [f"nsdr_{rule}_{stem}" for stem in self.stems]
            keys = [f"nsdr_{rule}", *stems, *(f"{m}_{rule}" for m in others)]
            values = [means[key]["mean"] for key in keys]
            shown = ("-" if v is None else f"{v:.2f}" for v in values)
            print(" ".join(f"{text:>12}" for text in [rule, *shown]))
        if self.config.audited:
            print()
            folder = Path(self.config.output_folder)
            options = {"sources": self.stems, "separate": False, "listen": 8}
            print(audit(self.config.audited, folder / "audit", [folder], **options))

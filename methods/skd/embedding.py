"""Stage A of SKD: each channel of the teacher gets a semantic vector whose relations copy those of its activations (Eq. 1).

Eq. 1 is linear in the images' distributions p, so its mean over images is one loss at the mean distribution P. Hence the two modes.
`streaming`: one pass over the training images (no augmentation) estimates P, then the vectors are fitted to it until they converge.
`paper`: SGD over the images, as printed (lr 0.1, momentum 0.9, weight decay 5e-4, batch 64, 100 epochs, x0.1 after 50, 75, 90;
momentum as in the CRD protocol), with the training augmentation; P is that of the last epoch.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import PreparationData, Prepared
from methods.skd.loss import distribution, embedding_loss, entropy, kl_left, mean_distribution, relation

BATCH = 64
CONVERGED = 0.01
"""A fit has converged where going on lowers its KL by less than this fraction of the signal (the KL of the uniform distribution)."""


SETTINGS = ("kind", "mode", "dimensions", "temperature", "diagonal", "seed")
"""Hyper-parameters that shape the result in both modes."""


@dataclass(frozen=True)
class Embedding:
    """What shapes the result, besides teacher and data."""

    layers: Mapping[str, int]  # name -> index in the tuple of stage maps
    hyper: Any  # methods.skd.Hyper

    def settings(self) -> dict[str, Any]:
        """JSON values: the key of the stored result; what the mode does not use is left out."""
        shared = {"layers": list(self.layers)} | {name: getattr(self.hyper, name) for name in SETTINGS}
        return shared | ({"steps": self.hyper.fit_steps} if self.hyper.mode == "streaming" else {"epochs": self.hyper.paper_epochs})

    def build(self, teacher: nn.Module, data: PreparationData) -> Prepared:
        """Tensors, a layer each: `S.<layer>` (C, K) vectors, `p.<layer>` (C, C) their distribution, `P.<layer>` (C, C) the images' own,
        p and S fp32, P fp64. Facts: the settings, and per layer the channels, the KLs in nats and whether the fit converged.
        """
        started = time.perf_counter()
        fit = self._streaming if self.hyper.mode == "streaming" else self._paper
        vectors, means, steps, pass_seconds = fit(teacher, data)
        tensors, facts = {}, []
        for layer, s in vectors.items():
            p = self._distribution(s)
            start = self._distribution(self._initial(layer, len(s), data))
            tensors |= {f"S.{layer}": s.float(), f"p.{layer}": p.float(), f"P.{layer}": means[layer]}
            facts.append({"layer": layer, **self._report(means[layer], s, p, start), "steps": steps[layer]})
            data.log(describe(facts[-1]))
        seconds = {"pass_seconds": pass_seconds, "seconds": time.perf_counter() - started}
        return Prepared(tensors, {**self.settings(), "fits": facts, "images": data.count, **seconds})

    def _streaming(self, teacher: nn.Module, data: PreparationData) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, int], float]:
        started = time.perf_counter()
        means = self.stream(teacher, data)
        pass_seconds = time.perf_counter() - started
        vectors, steps = {}, {}
        for layer, target in means.items():
            vectors[layer], steps[layer] = self._fit(self._initial(layer, len(target), data), target)
        return vectors, means, steps, pass_seconds

    def stream(self, teacher: nn.Module, data: PreparationData) -> dict[str, Tensor]:
        """P of each layer in one pass over the training images, as they are: (C, C) fp64, on the CPU."""
        sums: dict[str, Tensor] = {}
        with torch.inference_mode():
            for images, _ in data.batches(BATCH):
                for layer, p in self._batch(teacher, images).items():
                    sums[layer] = sums[layer].add_(p, alpha=len(images)) if layer in sums else p * len(images)
        return {layer: (total / data.count).cpu().clone() for layer, total in sums.items()}

    def _batch(self, teacher: nn.Module, images: Tensor) -> dict[str, Tensor]:
        maps = teacher(images, kinds=(self.hyper.kind,)).maps[self.hyper.kind]
        with torch.autocast(images.device.type, enabled=False):
            return {layer: mean_distribution(maps[i], self.hyper.temperature, self.hyper.diagonal) for layer, i in self.layers.items()}

    def _fit(self, start: Tensor, target: Tensor) -> tuple[Tensor, int]:
        """L-BFGS on Eq. 1 at the mean distribution, fp64; returns the vectors (C, K) and the steps it took."""
        vectors = start.double().clone().requires_grad_()
        # The factor C takes the mean over rows back: it would make the tolerances depend on the layer's width.
        optimiser = torch.optim.LBFGS(
            [vectors], max_iter=self.hyper.fit_steps, max_eval=4 * self.hyper.fit_steps, tolerance_grad=1e-7, tolerance_change=1e-11, history_size=20,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = len(target) * embedding_loss(vectors, target, self.hyper.temperature, self.hyper.diagonal)
            loss.backward()
            return loss

        optimiser.step(closure)
        return vectors.detach(), optimiser.state[vectors]["n_iter"]

    def _paper(self, teacher: nn.Module, data: PreparationData) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, int], float]:
        vectors: dict[str, Tensor] = {}
        optimiser, steps, done, before = None, 0, 0, 0.0
        started = time.perf_counter()
        if state := data.resume():
            done, steps, before, sums = state["epoch"], state["steps"], state["seconds"], state["sums"]
            vectors = {layer: v.to(data.device).requires_grad_() for layer, v in state["vectors"].items()}
            optimiser = _sgd(vectors)
            optimiser.load_state_dict(state["optimizer"])
        for epoch in range(done + 1, self.hyper.paper_epochs + 1):
            sums: dict[str, Tensor] = {}
            for images, _ in data.batches(BATCH, epoch=epoch, augment=True, shuffle=True):
                with torch.no_grad():
                    targets = self._batch(teacher, images)
                if optimiser is None:
                    vectors = {k: self._initial(k, len(p), data).to(p.device).requires_grad_() for k, p in targets.items()}
                    optimiser = _sgd(vectors)
                optimiser.param_groups[0]["lr"] = paper_rate(epoch, self.hyper.paper_epochs)
                optimiser.zero_grad()
                # Linear in p: the batch's mean distribution gives the gradient of the batch's mean loss.
                losses = [embedding_loss(vectors[k], p.float(), self.hyper.temperature, self.hyper.diagonal) for k, p in targets.items()]
                torch.stack(losses).mean().backward()
                optimiser.step()
                steps += 1
                for layer, p in targets.items():
                    sums[layer] = sums.get(layer, 0) + p * len(images)
            data.log(f"skd embedding: epoch {epoch} of {self.hyper.paper_epochs}")
            state = {"epoch": epoch, "steps": steps, "seconds": before + time.perf_counter() - started, "sums": sums}
            data.save({**state, "vectors": {k: v.detach() for k, v in vectors.items()}, "optimizer": optimiser.state_dict()})
        means = {layer: (total / data.count).cpu() for layer, total in sums.items()}
        seconds = before + time.perf_counter() - started
        return {k: v.detach().double().cpu() for k, v in vectors.items()}, means, dict.fromkeys(vectors, steps), seconds

    def _initial(self, layer: str, channels: int, data: PreparationData) -> Tensor:
        """N(0, 1), keyed by layer and seed: (C, K) fp32."""
        return torch.randn(channels, self.hyper.dimensions, generator=data.generator(f"skd-embedding/{layer}/{self.hyper.seed}"))

    def _distribution(self, vectors: Tensor) -> Tensor:
        return distribution(relation(vectors.double()), self.hyper.temperature, self.hyper.diagonal)

    def _report(self, target: Tensor, vectors: Tensor, p: Tensor, start: Tensor) -> dict[str, Any]:
        left = kl_left(target, p).item()
        signal = math.log(len(target) - (not self.hyper.diagonal)) - entropy(target).item()
        further = kl_left(target, self._distribution(self._fit(vectors, target)[0])).item()
        return {
            "channels": len(target),
            "kl_left": left,
            "kl_random": kl_left(target, start).item(),
            "kl_signal": signal,
            "entropy": entropy(target).item(),
            "kl_gap": left - further,
            "converged": left - further <= CONVERGED * signal,
        }


def describe(fit: Mapping[str, Any]) -> str:
    """One line about the fit of a layer; KLs in nats."""
    text = f"skd embedding: {fit['layer']} ({fit['channels']} channels): KL left {fit['kl_left']:.2e}, random vectors {fit['kl_random']:.2e}"
    text += f", signal {fit['kl_signal']:.2e}, {fit['steps']} steps"
    return text if fit["converged"] else text + f"; NOT CONVERGED, going on would lower it by {fit['kl_gap']:.1e}"


def _sgd(vectors: Mapping[str, Tensor]) -> torch.optim.SGD:
    return torch.optim.SGD(vectors.values(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def paper_rate(epoch: int, epochs: int) -> float:
    """The learning rate of SGD in an epoch (from 1): 0.1, x0.1 after 50, 75 and 90 % of the epochs, rounded."""
    return 0.1 * 0.1 ** sum(epoch > int(fraction * epochs + 0.5) for fraction in (0.5, 0.75, 0.9))


def layer_indices(stages: Sequence[tuple[int, int, int]], include_block0: bool) -> dict[str, int]:
    """Layer name -> index in a tuple of stage maps (stem first): stage1, stage2, ..., and block0 before them where it is asked for."""
    return ({"block0": 0} if include_block0 else {}) | {f"stage{i}": i for i in range(1, len(stages))}

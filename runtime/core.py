"""What every model can do: encode, decode, reconstruct, generate, verify."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import inputs as _inputs
from .latents import Latents, check_latent_space, level_space
from .loaded import Loaded
from .noise import Noise, stream_of
from .posterior import Level, Posterior, draw_lower_noise, draw_noise
from .prior import draw_prior
from .signature import level_names

if TYPE_CHECKING:
    from .verification import Report

FloatArray = NDArray[np.float32]


class Core(Loaded):
    """The part of `Model` that all of its methods stand on.

    Where the model is conditional, each method takes `y`, the labels: integers from 0 to `num_classes - 1`, shape
    `(batch,)`, or one for all rows.
    """

    def observations(self, x: ArrayLike, y: ArrayLike | None = None) -> tuple[FloatArray, NDArray[np.int64] | None]:
        """Return observations, and labels, as the graphs take them: the check that each method begins with, by itself.

        Args:
            x: Observations, as for `encode`.
            y: Labels, for a conditional model.

        Returns:
            float32, shape `(batch, data_dim)`; int64, shape `(batch,)`, or `None` where the model sees no labels.

        Raises:
            InputError: `x` or `y` has another shape or dtype, holds NaN, or values out of range.
        """
        given = self._observations.given(x, y)
        return given["x"], given.get("y")

    def encode(
        self,
        x: ArrayLike,
        *,
        y: ArrayLike | None = None,
        seed: int | Noise | None = None,
        eps: Sequence[ArrayLike] | None = None,
    ) -> Posterior:
        """Return q(z|x), the approximate posterior of each row of `x`.

        Args:
            x: Observations, shape `(batch, data_dim)` or `(batch, *data_shape)`, for images of one channel also
                `(batch, height, width)`; float32 or float64, in [0, 1] unless the likelihood takes any range, or uint8
                in [0, 255], which is divided by 255. Where `manifest.preprocessing` has a scale, numbers of any kind in
                that instead, which become [0, 1].
            y: Labels, for a conditional model.
            seed: For a hierarchy: noise stream of the draws on which the upper levels hang. Without `seed` and `eps`
                each level is given the mean of the one below.
            eps: For a hierarchy: that noise itself, shape `(batch, size)` for each level but the highest, z's first.

        Returns:
            `z_loc` and `z_scale`, float32, shape `(batch, z_dim)` each; `z_scale` is a standard deviation, positive. Of
            a hierarchy also the `upper` levels, of a mixture `component_probs`.

        Raises:
            InputError: An argument has another shape or dtype, holds NaN, or values out of range.
        """
        outputs = self._graphs["encoder"].run_as_is(x=x) if y is None and seed is None and eps is None else None
        if outputs is None:
            given = self._observations.given(x, y)
            outputs = self._graphs["encoder"]({**given, **draw_lower_noise(self._spec, len(given["x"]), seed, eps)})
        names = zip(*(level_names(name, len(self._spec.z_dims)) for name in ("z_loc", "z_scale")), strict=True)
        first, *upper = (
            Level(Latents.of(outputs[loc], level_space(self.latent_space_id, level)), outputs[scale])
            for level, (loc, scale) in enumerate(names, start=1)
        )
        probs = outputs.get("component_probs")
        return Posterior(first.z_loc, first.z_scale, self.latent_space_id, tuple(upper), probs)

    def decode(self, z: ArrayLike, *, y: ArrayLike | None = None, out: FloatArray | None = None) -> FloatArray:
        """Return `loc_img`, the mean of p(x|z): for a Bernoulli, the probability of each pixel.

        Args:
            z: Latents, shape `(batch, z_dim)`; float32 or float64, finite.
            y: Labels, for a conditional model.
            out: Where to write the result, and what is returned then: float32, C-contiguous, `(batch, data_dim)`; it
                may lie over the input.

        Returns:
            float32, shape `(batch, data_dim)`; `.reshape(-1, *model.data_shape)` makes images. In [0, 1], or in the
            units of the data where the likelihood takes any range; `manifest.preprocessing.raw` undoes a scale.

        Raises:
            InputError: `z` has another shape or dtype, is not finite, or is another model's: latents that a `Posterior`
                gave know their latent space.
        """
        if y is None and out is None and (outputs := self._graphs["decoder"].run_as_is(z=z)) is not None:
            return outputs["loc_img"]
        check_latent_space(z, self.latent_space_id)
        latents = _inputs.latents(z, self.z_dim)
        given = {"z": latents, **_inputs.labels(y, len(latents), self._spec)}
        places = _inputs.places(out, len(latents), self._spec)
        return self._graphs["decoder"](_inputs.apart(given, out), places)["loc_img"]

    def reconstruct(
        self,
        x: ArrayLike,
        *,
        y: ArrayLike | None = None,
        seed: int | Noise | None = None,
        eps: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        """Encode `x`, sample z, and decode it.

        Args:
            x: Observations, as for `encode`.
            y: Labels, for a conditional model.
            seed: Noise stream for z, the same as PyTorch's CPU generator: the result is that of
                `pyro.set_rng_seed(seed); vae.reconstruct_img(x)`. 0 to 2**64 - 1.
            eps: The noise itself, shape `(batch, z_dim)`. Without `seed` and `eps` there is none: z is `z_loc`.
            out: Where to write the result, and what is returned then: float32, C-contiguous, `(batch, data_dim)`; it
                may lie over the input.

        Returns:
            `loc_img`, float32 in the units of the data, shape `(batch, data_dim)`.

        Raises:
            InputError: An argument has another shape or dtype, or values out of range; or both `seed` and `eps`.
        """
        if (
            eps is not None
            and y is None
            and seed is None
            and out is None
            and (outputs := self._graphs["reconstruct"].run_as_is(x=x, eps=eps)) is not None
        ):
            return outputs["loc_img"]
        given = self._observations.given(x, y)
        shape = (len(given["x"]), self._spec.z_dim)
        noise = draw_noise(shape, seed, eps)
        given["eps"] = np.zeros(shape, np.float32) if noise is None else noise
        places = _inputs.places(out, shape[0], self._spec)
        return self._graphs["reconstruct"](_inputs.apart(given, out), places)["loc_img"]

    def generate(
        self, n: int, seed: int | Noise, *, y: ArrayLike | None = None, component: ArrayLike | None = None
    ) -> FloatArray:
        """Draw z from the prior and decode it.

        Args:
            n: How many, 0 or more.
            seed: Noise stream for z, the same as PyTorch's CPU generator: z is what Pyro's model draws from the same
                seed, the levels of a hierarchy from the highest down. 0 to 2**64 - 1.
            y: Labels, for a conditional model.
            component: For a mixture, the component or those of each row. Without it they are drawn from p(c) first, by
                `torch.rand(n)` and the inverse of its cumulative sum; Pyro draws them in another way, so with drawn
                components the samples of a seed are not Pyro's.

        Returns:
            `loc_img`, float32 in the units of the data, shape `(n, data_dim)`.

        Raises:
            InputError: An argument is out of range, or is none of this model's.
        """
        n = _inputs.count("n", n, _inputs.MOST)
        prior = None if self._spec.latent == "normal" else self._graphs["prior"]
        z = draw_prior(self._spec, prior, n, stream_of(seed), component)
        return self._graphs["decoder"]({"z": z, **_inputs.labels(y, n, self._spec)})["loc_img"]

    def verify(self) -> Report:
        """Compare this model, as it runs here, with what Pyro computed at export.

        Every output is compared at batch sizes 1, 2, 7 and 256, on samples of the data, on all zeros and all ones. In a
        lower precision than float32 what counts is the mean ELBO, of which no more may be lost than the bundle says.

        Returns:
            The comparison; `report.passed` is the verdict, `print(report)` the table.

        Raises:
            BundleError: `reference.npz` is missing, changed, or damaged.
        """
        from .reduced import verify_reduced  # what no start needs
        from .verification import verify_graphs

        if self.precision == "fp32":
            return verify_graphs(self._bundle, "onnx", self._graphs)
        return verify_reduced(self._bundle, self.precision, self._graphs)

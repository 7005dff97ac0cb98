"""Load a bundle and use it: `python examples/embed.py models/mnist-mlp`."""

import sys

import edgevae

if len(sys.argv) != 2:
    sys.exit("usage: python examples/embed.py BUNDLE, a folder with a manifest.json")

with edgevae.load(sys.argv[1]) as model:
    label = 0 if model.num_classes else None  # only a conditional model takes labels
    images = model.generate(4, seed=0, y=label)  # (4, data_dim), float32; the same on every machine
    posterior = model.encode(images, y=label)  # q(z|x): z_loc and z_scale, (4, z_dim) each
    restored = model.reconstruct(images, y=label)  # (4, data_dim), decoded from the mean of q(z|x)
    score = model.score(images, y=label)  # how usual each image is, in nats; higher is more usual

    print(f"{model.manifest.name} on {model.provider}: {model.data_shape} to {model.z_dim} numbers and back")
    for row in range(len(images)):
        error, spread = abs(restored[row] - images[row]).mean(), posterior.z_scale[row].mean()
        print(f"image {row}: ELBO {score.elbo[row]:.1f} nats, mean z_scale {spread:.2f}, mean error {error:.3f}")

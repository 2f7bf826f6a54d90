"""Diffusion models as one small algebra. Imports torch and the standard library only.

Five nouns: a *level* says how noisy (`level`), a *path* is a curve of levels, a *target* is what the network predicts
(`target`), a *weight* is how much an error costs (`objective`), a *walk* is the list of levels a sampler visits (`walk`).
Three verbs: *denoise* (`denoiser`), *guide* (`guide`), *move* (`transition`). Training is `train`, sampling is `sample`,
and a named method of the literature is one line of `presets`.
"""

"""Worked examples, from data to result. Each runs as it stands, and is a test of the package.

The examples share one session: what an earlier one imports, a later one uses.

## A language model's loss without the [N, V] logits

Embeddings are tied, and the last token of each text has nothing to predict. The loss takes the
hidden states and the kernel; the logits exist a block of classes at a time, in the gradient too.

>>> import jax, jax.numpy as jnp, numpy as np, optax
>>> import jaxsoftjac as jsj
>>> def features(params, tokens):                       # [texts, tokens] → [texts, tokens, D]
...     h = params["embedding"][tokens]
...     return h + jnp.tanh(h @ params["layer"])
>>> def language_loss(params, tokens):
...     labels = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
...     hidden, kernel = features(params, tokens), params["embedding"].T
...     return jsj.linear_cross_entropy(
...         hidden, kernel, labels, ignore_index=-1, reduction="mean")
>>> random = np.random.default_rng(0)
>>> V, D, tokens = 4096, 16, random.integers(4096, size=(8, 64))
>>> params = {"embedding": random.normal(size=(V, D)), "layer": random.normal(size=(D, D)) / 8}
>>> params = jax.tree.map(lambda a: jnp.asarray(a, "float32"), params)

One step down, and what the compiled gradient needs beside its arguments, compared with one array
of the logits' size:

>>> step = jax.jit(jax.value_and_grad(language_loss)).lower(params, tokens).compile()
>>> bool(step.memory_analysis().temp_size_in_bytes < tokens.size * V * 4 / 2)
True
>>> loss, gradient = step(params, tokens)
>>> params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
>>> bool(step(params, tokens)[0] < loss)
True

## Hessian products and natural gradients

A small network, three classes. `jaxsoftjac.transforms.hvp` multiplies the Hessian of the loss by a
direction; without `argnums` that is the Hessian by the parameters.

>>> def network(params, inputs):
...     return jnp.tanh(inputs @ params["in"]) @ params["out"]
>>> def mean_loss(params, inputs, labels):
...     return jsj.cross_entropy(network(params, inputs), labels, reduction="mean")
>>> inputs = random.normal(size=(60, 2))
>>> labels = np.argmax(inputs @ np.array([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]]), axis=-1)
>>> weights = {"in": random.normal(size=(2, 4)), "out": random.normal(size=(4, 3)) / 2}
>>> weights = jax.tree.map(jnp.asarray, weights)
>>> gradient = jax.jit(jax.grad(mean_loss))(weights, inputs, labels)
>>> along = jax.jit(jsj.hvp(mean_loss))(weights, inputs, labels, gradient)
>>> print(jax.tree.map(jnp.shape, along))
{'in': (2, 4), 'out': (4, 3)}

The Hessian of a network has directions of negative curvature. The Gauss–Newton matrix, which for
cross-entropy is the Fisher matrix F, has none, and is a product of the same kind:

>>> along = jax.jit(jsj.fisher_product(network))(weights, inputs, labels, gradient)
>>> bool(sum(jnp.vdot(gradient[n], along[n]) for n in gradient) > 0)
True

A natural-gradient step solves (F + λI)d = −g by such products alone.
`jaxsoftjac.optimizers.gauss_newton_cg` is that step as an optax transformation, with a damping that
adapts itself; `jaxsoftjac.optimizers.natural_gradient` samples F instead.

>>> optimizer = jsj.optimizers.gauss_newton_cg(network)
>>> state, batch = optimizer.init(weights), dict(inputs=inputs, labels=labels)
>>> @jax.jit
... def update(weights, state):
...     loss, gradient = jax.value_and_grad(mean_loss)(weights, **batch)
...     updates, state = optimizer.update(gradient, state, weights, **batch)
...     return optax.apply_updates(weights, updates), state, loss
>>> for _ in range(10):
...     weights, state, loss = update(weights, state)
>>> bool(loss < 0.2)
True

## Attention under a jvp

A MeanFlow training step takes the jvp of a transformer inside its gradient, which flash kernels
refuse. Here is one layer of such a model:

>>> def velocity(w, z, t):                                          # z: [batch, tokens, width]
...     h = z + jnp.sin(t * jnp.arange(8.0))[None, None]
...     q, k, v = (jnp.reshape(h @ w[name], (*h.shape[:2], 2, 4)) for name in "qkv")
...     return z + jsj.dot_product_attention(q, k, v).reshape(z.shape) @ w["o"]
>>> def meanflow_loss(w, noise, data, t):
...     z, v = (1 - t) * data + t * noise, noise - data
...     u, slope = jax.jvp(lambda z, t: velocity(w, z, t), (z, t), (v, 1.0))
...     return jnp.mean((u - jax.lax.stop_gradient(v - t * slope)) ** 2)
>>> w = dict(zip("qkvo", random.normal(size=(4, 8, 8)) / 8))
>>> data, noise = random.normal(size=(2, 16, 32, 8))
>>> step = jax.jit(jax.value_and_grad(meanflow_loss))
>>> loss, gradient = step(w, noise, data, 0.5)
>>> w = jax.tree.map(lambda w, g: w - 0.01 * g, w, gradient)
>>> bool(step(w, noise, data, 0.5)[0] < loss)
True

## Attention in Flax

`jaxsoftjac.attention.as_flax_attention` is an `attention_fn`, in NNX and in Linen. The layer gives
what it gave before, never holds the [T, S] map, and takes the jvp of its gradient.

>>> from flax import nnx
>>> def layer(**attention):
...     options = dict(num_heads=2, in_features=8, decode=False, rngs=nnx.Rngs(0))
...     return nnx.MultiHeadAttention(**options, **attention)
>>> from jaxsoftjac.attention import as_flax_attention
>>> x = jnp.asarray(random.normal(size=(2, 16, 8)), "float32")
>>> ours, flax = layer(attention_fn=as_flax_attention), layer()
>>> bool(jax.jit(lambda x: jnp.allclose(ours(x), flax(x), atol=1e-5))(x))
True
>>> energy = lambda x: jnp.sum(ours(x) ** 2)
>>> print(jax.jit(lambda x: jax.jvp(jax.grad(energy), (x,), (x,))[1])(x).shape)
(2, 16, 8)

## Softmax regression beside scikit-learn

`jaxsoftjac.regression.SoftmaxRegression` stands where `LogisticRegression` does, with the same
penalty and the same attributes:

>>> from sklearn.datasets import load_iris
>>> from sklearn.linear_model import LogisticRegression
>>> from sklearn.preprocessing import scale
>>> from jaxsoftjac.regression import SoftmaxRegression
>>> flowers = load_iris()
>>> x, y = scale(flowers.data), flowers.target
>>> ours, theirs = SoftmaxRegression(C=2.0).fit(x, y), LogisticRegression(C=2.0, tol=1e-8).fit(x, y)
>>> print(f"{ours.score(x, y):.2f}", float(abs(ours.coef_ - theirs.coef_).max()) < 1e-4)
0.97 True

`jaxsoftjac.regression.fit_softmax_regression` is the same fit as a function of arrays. It also
says how sure it is, which scikit-learn does not:
`jaxsoftjac.regression.summarise_softmax_regression` of each coefficient (standard errors, z, p and
intervals), `jaxsoftjac.regression.softmax_regression_intervals` of each predicted probability.
"""

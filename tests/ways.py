"""Every mode and nesting of a function, and every control-flow transformation."""

import jax
import jax.numpy as jnp


def ways(f):
    """Every mode and nesting of `f`, and every control-flow transformation, as functions of x."""

    def u(x):
        return jnp.sin(3 * x)

    def jvp(f, t=u):
        return lambda x: jax.jvp(f, (x,), (t(x),))[1]

    def vjp(f):
        def pulled(x):
            y, pullback = jax.vjp(f, x)
            return pullback(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))[0]

        return pulled

    def linearized(x):
        y, push = jax.linearize(f, x)
        return y, jax.linear_transpose(push, x)(jnp.ones_like(y))[0]

    def scanned(x):
        def body(c, _):
            y = f(c)
            return c + jnp.sum(y) / 10, y

        return jax.lax.scan(body, x, None, length=2)

    return {
        "value": f,
        "jvp": jvp(f),
        "vjp": vjp(f),
        "jacfwd": jax.jacfwd(f),
        "jacrev": jax.jacrev(f),
        "forward over reverse": jvp(vjp(f)),
        "reverse over reverse": vjp(vjp(f)),
        "reverse over forward": vjp(jvp(f, jnp.ones_like)),
        "forward over forward": jvp(jvp(f)),
        "third order, reverse": vjp(vjp(vjp(f))),
        "third order, forward": jvp(jvp(jvp(f))),
        "linearize, transpose": linearized,
        "vmap of jvp": jax.vmap(jvp(lambda x: f(x + jnp.ones((), x.dtype))), in_axes=0),
        "vmap of vjp": jax.vmap(vjp(f)),
        "checkpoint": jvp(vjp(jax.checkpoint(f))),
        # JAX 0.10 drops the rules of what it linearises in a scan: the formulas must be right too.
        "scan": jvp(vjp(lambda x: scanned(x)[1])),
        "cond": vjp(lambda x: jax.lax.cond(jnp.sum(x) > 0, f, lambda x: 2 * f(x), x)),
    }

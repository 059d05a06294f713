"""Every mode and nesting of a function, and every control-flow transformation."""

import jax
import jax.numpy as jnp


def ways(f):
    """Every mode and nesting of `f`, and every control-flow transformation, as functions of x.

    Forward mode has the value beside the derivative, so that "forward over reverse" is the value,
    the vjp and the jvp as well.
    """

    def jvp(f, t=lambda x: jnp.sin(3 * x)):
        return lambda x: jax.jvp(f, (x,), (t(x),))

    def pushed(f):
        return lambda x: jvp(f, jnp.ones_like)(x)[1]

    def value_and_vjp(f):
        def pulled(x):
            y, pullback = jax.vjp(f, x)
            cotangent = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
            return y, pullback(cotangent)[0]

        return pulled

    def vjp(f):
        return lambda x: value_and_vjp(f)(x)[1]

    def linearized(x):
        y, push = jax.linearize(f, x)
        return y, jax.linear_transpose(push, x)(jnp.ones_like(y))[0]

    def scanned(x):
        def body(c, _):
            y = f(c)
            return c + jnp.sum(y) / 10, y

        return jax.lax.scan(body, x, None, length=2)[1]

    return {
        "value": f,
        "jacfwd": jax.jacfwd(f),
        "jacrev": jax.jacrev(f),
        "forward over reverse": jvp(value_and_vjp(f)),
        "reverse over reverse": vjp(vjp(f)),
        "reverse over forward": vjp(pushed(f)),
        "forward over forward": jvp(jvp(f)),
        "third order, reverse": vjp(vjp(vjp(f))),
        "third order, forward": jvp(jvp(jvp(f))),
        "linearize, transpose": linearized,
        "vmap": jax.vmap(jvp(value_and_vjp(f))),
        "checkpoint": jvp(value_and_vjp(jax.checkpoint(f))),
        # JAX 0.10 drops the rules of what it linearises in a scan: the formulas must be right too.
        "scan": jvp(vjp(scanned)),
        "cond": vjp(lambda x: jax.lax.cond(jnp.sum(x) > 0, f, lambda x: 2 * f(x), x)),
    }

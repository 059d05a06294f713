"""The derivatives of softmax in JAX: exact, structured, in every mode and to every order."""

"""Instance-wise unlearning in JAX."""

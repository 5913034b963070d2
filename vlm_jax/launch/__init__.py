"""`python -m vlm_jax.launch TARGET`: renders the templates of `launch/` for a place to run, and starts them."""

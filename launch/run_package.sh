run() { /opt/vlm_jax/bin/python -m vlm_jax.main "${arguments[@]}"; }

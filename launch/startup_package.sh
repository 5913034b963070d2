# TPU images bring Python 3.10; uv brings the one that is needed.
install() {
  if ! command -v uv >/dev/null; then
    curl -sfL https://astral.sh/uv/{{ uv }}/install.sh | env UV_INSTALL_DIR=/usr/local/bin UV_NO_MODIFY_PATH=1 sh ||
      return
  fi
  [[ -x /opt/vlm_jax/bin/python ]] || uv venv --python 3.12 /opt/vlm_jax || return
  uv pip install --python /opt/vlm_jax/bin/python {{ package }}
}

run() {
  docker rm --force "$name" >/dev/null 2>&1
  docker run --name "$name" --privileged --net=host --volume "$mount:$mount" --entrypoint python "$image" \
    -m vlm_jax.main "${arguments[@]}"
}

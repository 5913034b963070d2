readonly image={{ image }}

install() {
  local registry=${image%%/*}
  if [[ $registry == *.pkg.dev ]]; then gcloud auth configure-docker "$registry" --quiet || return; fi
  docker pull "$image"
}

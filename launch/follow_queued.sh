create() {
  gcloud compute tpus queued-resources create "$name" "${where[@]}" \
    {{ create }} \
    --metadata-from-file=startup-script=startup.sh
}
delete() { gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet; }
describe() { gcloud compute tpus queued-resources describe "$name" "${where[@]}"; }
state() {
  local all
  all=$(gcloud compute tpus queued-resources list "${where[@]}" --format='value(name.basename(),state.state)') || return
  case $(awk -v name="$name" '$1 == name { print $2 }' <<<"$all") in
    '') echo absent ;;
    SUSPENDED) echo lost ;; # preempted: it is never filled again
    FAILED) echo failed ;;
    ACTIVE) echo running ;;
    *) echo waiting ;;
  esac
}

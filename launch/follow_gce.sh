{{ region }}
forget() { # what may be left of an earlier group
  gcloud compute instance-templates delete "$name" "${where[0]}" --quiet
  {{ delete_policy }}
} 2>/dev/null
create() {
  forget
  {{ make_policy }}
  gcloud compute instance-templates create "$name" "${where[0]}" \
    {{ template }} \
    --metadata-from-file=startup-script=startup.sh || return
  gcloud compute instance-groups managed create "$name" "${where[@]}" \
    {{ group }}
}
delete() {
  gcloud compute instance-groups managed delete "$name" "${where[@]}" --quiet || return
  forget
}
describe() { gcloud compute instance-groups managed describe "$name" "${where[@]}"; }
state() {
  local group machines
  group=$(gcloud compute instance-groups managed list "${where[0]}" --filter="name=$name" --format='value(name)') || return
  if [[ -z $group ]]; then echo absent && return; fi
  machines=$(gcloud compute instance-groups managed list-instances "$name" "${where[@]}" \
    --format='value(instanceStatus)') || return
  {{ lost }}
  if [[ $(grep -cx RUNNING <<<"$machines") == {{ hosts }} ]]; then echo running; else echo waiting; fi
}

#!/usr/bin/env bash
# The highest level of each published workload that policies sustain in simulation, in parts of the
# fluid bound (packed, elastic, temporal), and how far packed is ahead: the table of RESULTS.md.
#
#   bench/peaks.sh DATA FLAGS [OPTION...]
#
# DATA has the published data files: device-config.json, mem-config.json, and what the first names;
# FLAGS is a file of scheduler flags. OPTIONs go to `gpuletctl workload --peak`: --slo 0.5,
# --arrivals gamma --cv 4, --guests of-device, --defer. $GPUS (4 8), $SEEDS (1), $SECONDS_EACH of
# virtual time (10) and $WORKLOADS may be set; gpuletctl is taken from PATH. Of several seeds there is
# a row for each, and one of their geometric means.
set -euo pipefail
[ $# -ge 2 ] || {
  sed -n '2,10s/^# \{0,1\}//p' "$0"
  exit 2
}
data=$1 flags=$2
shift 2
workloads=${WORKLOADS:-scen1 scen2 scen3 scen4 scen5 game traffic}

echo "| GPUs | seed | ${workloads// / | } | over elastic | over temporal | of the bound |"
echo "| --- | ---$(for _ in $workloads; do printf ' | ---'; done) | --- | --- | --- |"
for gpus in ${GPUS:-4 8}; do
  for seed in ${SEEDS:-1}; do
    echo "seed $seed"
    for workload in $workloads; do
      gpuletctl workload "$workload" --peak --gpus "$gpus" --seconds "${SECONDS_EACH:-10}" \
        --seed "$seed" --sched-config "$flags" --resource-dir "$data" \
        --device-config "$data/device-config.json" --mem-config "$data/mem-config.json" "$@"
    done
  done | awk -v gpus="$gpus" '
    # A row of parts of the bound, and what packed is worth in it.
    function put(name, parts,    at, row, rows, ours, elastic, temporal) {
      for (at = 1; at <= count; at++) {
        row = row sprintf(" | %.2f %.2f %.2f", parts[at, "packed:"], parts[at, "elastic:"],
          parts[at, "temporal:"])
        # What a policy cannot serve at all has no ratio.
        if (parts[at, "packed:"] * parts[at, "elastic:"] * parts[at, "temporal:"] == 0) continue
        rows++
        ours += log(parts[at, "packed:"])
        elastic += log(parts[at, "elastic:"])
        temporal += log(parts[at, "temporal:"])
      }
      if (rows > 0) printf "| %s | %s%s | %.2f | %.2f | %.2f |\n", gpus, name, row,
        exp((ours - elastic) / rows), exp((ours - temporal) / rows), exp(ours / rows)
    }
    # Then for each workload NAME, N GPUs, fluid bound: level X; and a line for each policy, "none" or
    # "level X (...".
    $1 == "seed" {
      if (seeds++) put(seed, parts)
      seed = $2
      count = 0
      next
    }
    / fluid bound: / { bound = $NF; count++; next }
    {
      part = $2 == "level" && bound > 0 ? $3 / bound : 0
      parts[count, $1] = part
      # A mean of nothing is nothing.
      product[count, $1] = (seeds > 1 ? product[count, $1] : 1) * part
    }
    END {
      put(seed, parts)
      if (seeds < 2) exit
      for (at in product) mean[at] = product[at] ^ (1 / seeds)
      put("all", mean)
    }'
done

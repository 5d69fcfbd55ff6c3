# The script that the demo submits. Its sizes are variables, as with `qsub -v`.
exec python3 -S -E /usr/lib/magrathea/magrathea_lab/work.py \
    "$STEPS" "$PAUSE_S" "/var/spool/$PBS_JOBID.count" "$HOLD_MIB"

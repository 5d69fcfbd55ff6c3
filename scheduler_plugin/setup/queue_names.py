"""Names that a queue cannot have, or that `qmgr` cannot be given. Pure.

The rules are OpenPBS's (23.06): `check_list` and `parse` in qmgr.c, `is_attr` in ecl_verify.c,
`pbs_verify_object_name` in ecl_verify_object_name.c. The library takes more than qmgr does: a queue that was made
through it may be called 007, and no qmgr can change it.
"""

from __future__ import annotations

import re

MOST_LETTERS = 15
"""PBS_MAXQUEUENAME."""

_FORM = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_OF_A_RESERVATION = re.compile(r"[RSM][0-9]+")

_ATTRIBUTE_WORDS = """
acl_group_enable acl_groups acl_host_enable acl_host_moms_enable acl_hosts acl_krb_realm_enable acl_krb_realms
acl_krb_submit_realms acl_resv_group_enable acl_resv_groups acl_resv_host_enable acl_resv_hosts acl_resv_user_enable
acl_resv_users acl_roots acl_user_enable acl_users alt_router attr_update_period backfill_depth checkpoint_min
clear_topjob_estimates_enable comment cred_renew_cache_period cred_renew_enable cred_renew_period cred_renew_tool
current_aoe current_eoe default_chunk default_node default_qdel_arguments default_qsub_arguments default_queue
do_not_span_psets eligible_time_enable enabled flatuid from_route_only has_runjob_hook hasnodes in_multivnode_host
job_history_duration job_history_enable job_requeue_timeout job_run_wait job_sort_formula job_sort_formula_threshold
jobs jobscript_max_size kill_delay last_state_change_time last_used_time license_count log_events mail_from mailer
maintenance_jobs managers max_array_size max_concurrent_provision max_group_res max_group_res_soft max_group_run
max_group_run_soft max_job_sequence_id max_queuable max_queued max_queued_res max_run max_run_res max_run_res_soft
max_run_soft max_running max_user_res max_user_res_soft max_user_run max_user_run_soft mom no_multinode_jobs
no_tasks node_fail_requeue node_group_enable node_group_key node_pack ntype only_explicit_psets operators
opt_backfill_fuzzy partition pbs_license_info pbs_license_linger_time pbs_license_max pbs_license_min pbs_version
pcpus pnames port power_provisioning poweroff_eligible preempt_order preempt_prio preempt_queue_prio preempt_sort
preempt_targets_enable priority provision_enable provision_timeout python_restart_max_hooks
python_restart_max_objects python_restart_min_interval query_other_jobs queue queue_type queued_jobs_threshold
queued_jobs_threshold_res require_cred require_cred_enable resend_term_delay reserve_retry_init reserve_retry_time
resources_assigned resources_available resources_cost resources_default resources_max resources_min
restrict_res_to_release_on_suspend resv resv_enable resv_post_processing_time route_destinations route_held_jobs
route_lifetime route_retry_time route_waiting_jobs rpp_highwater rpp_max_pkt_check rpp_retry sched_cycle_length
sched_host sched_log sched_preempt_enforce_resumption sched_priv sched_user scheduler_iteration scheduling
server_dyn_res_alarm server_host server_state sharing show_hidden_attribs started state state_count
sync_mom_hookfiles_timeout system_cost throughput_mode total_jobs vnode_pool
"""
_ATTRIBUTES = frozenset(_ATTRIBUTE_WORDS.split())
"""Of server, queues, vnodes and schedulers. qmgr takes such a word for an attribute, in any case of letters, and then
the command is about no queue or about all of them."""


def fault(name: str) -> str:
    """Why no queue that qmgr can change has this name, and what to do; empty if one may."""
    if not name:
        return "is empty; give the queue's name"
    if not _FORM.match(name):
        return "does not begin with a letter from a to z, and qmgr takes no other; use another name"
    if len(name.encode("utf-8", "surrogateescape")) > MOST_LETTERS:
        return f"is longer than {MOST_LETTERS} letters, which PBS refuses; use a shorter one"
    if name.lower() in _ATTRIBUTES:
        return "is one that qmgr takes for an attribute; use another one"
    if not _FORM.fullmatch(name):
        wrong = next(letter for letter in name if not _FORM.fullmatch("a" + letter))
        return f"contains {wrong!r}, which PBS does not take there; use letters, digits, _ and -"
    if _OF_A_RESERVATION.fullmatch(name):
        return "is one of those that PBS gives to the queues of reservations, which come and go; use another one"
    return ""

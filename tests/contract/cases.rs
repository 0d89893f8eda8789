//! The cases. Each leaves nothing behind, and names its pods after itself.

use std::future::Future;
use std::pin::Pin;

use crate::rig::Rig;

mod containers;
mod events;
mod exec;
mod info;
mod sandboxes;

/// A case, boxed so that all fit in one list.
pub(crate) type Case = fn(Rig) -> Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! cases {
    ($($module:ident::$name:ident),* $(,)?) => {
        /// All cases by name.
        pub(crate) const ALL: &[(&str, Case)] = &[$((stringify!($name), |rig| Box::pin($module::$name(rig)))),*];
    };
}

cases!(
    info::the_runtime_tells_its_name_and_version,
    info::the_runtime_is_ready,
    info::the_cgroup_driver_is_told_from_version_2_on,
    info::an_image_is_found_by_name_and_by_id,
    info::an_unknown_image_is_an_empty_answer,
    sandboxes::a_sandbox_lives_and_goes,
    sandboxes::a_stopped_sandbox_can_be_stopped_again,
    sandboxes::an_unknown_sandbox_is_not_found,
    sandboxes::removing_an_unknown_sandbox_succeeds,
    sandboxes::a_second_sandbox_of_the_same_attempt_is_refused,
    sandboxes::the_next_attempt_is_another_sandbox,
    sandboxes::a_removed_sandbox_gives_its_name_back,
    sandboxes::sandboxes_are_listed_by_label_state_and_id,
    sandboxes::removing_a_running_sandbox_takes_its_containers_along,
    sandboxes::stopping_a_sandbox_kills_its_containers,
    containers::a_container_goes_from_created_to_running_to_exited,
    containers::an_exit_code_is_kept_with_reason_error,
    containers::sigterm_ends_a_container_that_listens,
    containers::a_deaf_container_is_killed_after_the_timeout,
    containers::a_timeout_of_zero_kills_at_once,
    containers::stopping_twice_and_stopping_an_exited_container_succeed,
    containers::a_created_container_can_be_stopped,
    containers::an_unknown_container_is_not_found,
    containers::removing_an_unknown_container_succeeds,
    containers::removing_a_running_container_kills_it,
    containers::a_second_container_of_the_same_attempt_is_refused,
    containers::an_exited_container_does_not_start_again,
    containers::a_container_needs_its_image,
    containers::a_container_needs_a_ready_sandbox,
    containers::containers_are_listed_by_label_state_and_sandbox,
    containers::an_id_may_be_shortened,
    containers::output_is_logged_in_cri_format,
    containers::a_log_that_was_moved_away_is_reopened,
    exec::exec_answers_output_and_exit_code,
    exec::an_exec_that_takes_too_long_is_a_deadline,
    exec::an_exec_in_a_container_that_is_gone_fails,
    events::a_pod_tells_its_life_in_events,
    events::without_events_the_call_is_unimplemented,
);

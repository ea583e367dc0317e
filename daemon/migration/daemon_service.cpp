// SPDX-License-Identifier: Apache-2.0
//
// Starting and ending migrations. What queries answer is in daemon_service_info.cpp, work on the machine beside
// migrations in machine_worker.cpp.
#include "daemon/migration/daemon_service.hpp"

#include "base/log.hpp"
#include "base/thread.hpp"
#include "daemon/machine/parked.hpp"
#include "daemon/migration/machine_worker.hpp"
#include "daemon/migration/open_image.hpp"
#include "daemon/migration/run.hpp"
#include "postcopy/guest_memory.hpp"

#include <fmt/format.h>

#include <utility>

namespace migrationd::migration {

using qmp::Capability;
using qmp::MigrationStatus;

namespace {

transports::PageAccess page_access(const std::optional<MappedPlan>& mapped) {
  if (!mapped) return transports::PageAccess::none;
  return mapped->direct_io ? transports::PageAccess::direct : transports::PageAccess::cached;
}

}  // namespace

DaemonService::DaemonService(ServiceOptions options, EventSink& events, Post post)
    : options_(std::move(options)),
      events_(events),
      post_(std::move(post)),
      run_control_(!options_.start_paused),
      progress_(std::make_shared<Progress>()) {}

DaemonService::~DaemonService() {
  cpr_.reset();
  worker_.reset();
  if (run_) {
    run_->stop->request();
    if (run_->thread.joinable()) run_->thread.join();
  }
}

void DaemonService::adopt_machine(std::unique_ptr<Machine> machine, bool waits) {
  machine_ = std::move(machine);
  machine_waits_ = waits;
  if (!waits) run_control_.adopt(*machine_);
}

// --- attached guests --------------------------------------------------------------------------------------------

Result<void> DaemonService::guest_ready(std::unique_ptr<Machine> machine, guest::GuestState state) {
  MD_CHECK(check_idle());
  if (machine_) return machine_error("this daemon has its machine already");
  machine_ = std::move(machine);
  lost_ = false;
  guest_lost_.reset();
  machine_waits_ = state == guest::GuestState::empty;
  if (machine_waits_) {
    run_control_.await_machine();
  } else {
    run_control_.adopt(*machine_, state == guest::GuestState::running ? qmp::RunState::running : qmp::RunState::paused);
  }
  return {};
}

void DaemonService::guest_gone(const Error& why, std::function<void()> dropped) {
  guest_lost_ = why.text();
  guest_dropped_ = std::move(dropped);
  if (!run_ && !worker_) return drop_guest();
  // What is all here goes on without its guest.
  if (run_ && machine_ && machine_->needs_guest()) run_->stop->request();
}

void DaemonService::drop_guest() {
  machine_.reset();
  run_control_.machine_gone();
  if (const auto dropped = std::exchange(guest_dropped_, nullptr)) dropped();
}

// --- settings ---------------------------------------------------------------------------------------------------

Result<void> DaemonService::replace_capabilities(const qmp::Capabilities& capabilities) {
  if (lifecycle_.in_progress() && direction_ == Direction::outgoing) {
    return plan_error("There's a migration process in progress");
  }
  capabilities_ = capabilities;
  return {};
}

void DaemonService::replace_parameters(const qmp::MigrationParameters& parameters) {
  parameters_ = parameters;
  limits_.max_bandwidth = parameters.max_bandwidth;
  limits_.max_postcopy_bandwidth = parameters.max_postcopy_bandwidth;
  limits_.postcopy_background = parameters.postcopy_background;
  limits_.avail_switchover_bandwidth = parameters.avail_switchover_bandwidth;
  limits_.xbzrle_cache_size = parameters.xbzrle_cache_size;
  limits_.downtime_limit_ms = parameters.downtime_limit;
  limits_.throttle_trigger_threshold = parameters.throttle_trigger_threshold;
  limits_.cpu_throttle_initial = parameters.cpu_throttle_initial;
  limits_.cpu_throttle_increment = parameters.cpu_throttle_increment;
  limits_.max_cpu_throttle = parameters.max_cpu_throttle;
  limits_.cpu_throttle_tailslow = parameters.cpu_throttle_tailslow;
}

bool DaemonService::incoming_started() const { return direction_ == Direction::incoming && lifecycle_.in_progress(); }

// --- status -----------------------------------------------------------------------------------------------------

void DaemonService::emit_status() {
  const auto name = qmp::to_name(lifecycle_.status());
  log::info("migration status: {}", name);
  if (options_.status_text) options_.status_text(fmt::format("migration {}", name));
  if (capabilities_.has(Capability::events)) events_.migration(lifecycle_.status());
}

void DaemonService::take_status(MigrationStatus status) {
  if (lifecycle_.propose(status)) emit_status();
}

void DaemonService::take_paused(const std::string& why) {
  error_text_ = why;
  log::error("postcopy is paused: {}", why);
  take_status(MigrationStatus::postcopy_paused);
}

void DaemonService::take_pass(std::uint64_t pass) {
  if (capabilities_.has(Capability::events)) events_.migration_pass(pass);
}

void DaemonService::start_status(Direction direction) {
  direction_ = direction;
  progress_ = std::make_shared<Progress>();
  progress_->threads.give_cpus(options_.worker_cpus);
  started_ = Clock::now();
  error_text_.reset();
  listening_.clear();
  lifecycle_.start();
  emit_status();
}

void DaemonService::fail_at_once(const Error& error) {
  error_text_ = error.text();
  log::error("migration refused: {}", error.text());
  take_status(MigrationStatus::failed);
}

Result<void> DaemonService::check_idle() const {
  if (lifecycle_.in_progress()) return plan_error("There's a migration process in progress");
  if (worker_)
    return machine_error(
        "The machine is being examined (verify-machine or calc-dirty-rate); try again when that is done");
  return {};
}

Result<std::unique_ptr<DaemonService::Run>> DaemonService::new_run() {
  static std::uint64_t last_id = 0;
  auto run = std::make_unique<Run>(*this);
  run->id = ++last_id;
  MD_TRY(run->stop, StopSource::make());
  MD_TRY(run->continue_gate, Gate::make());
  return run;
}

// --- outgoing ---------------------------------------------------------------------------------------------------

Result<void> DaemonService::migrate(const transports::Address& address, const std::optional<transports::Address>& cpr,
                                    bool resume, transports::FdSource& fds) {
  if (resume) return resume_migration(address, fds);
  MD_TRY(SourcePlan plan, make_source_plan(capabilities_, parameters_, address, cpr.has_value()));
  return start_outgoing(
      address, std::move(plan), [&cpr] { return connect_cpr(*cpr); }, fds);
}

Result<void> DaemonService::start_outgoing(const transports::Address& address, SourcePlan plan,
                                           const std::function<Result<CprHandOver>()>& hand_over,
                                           transports::FdSource& fds) {
  MD_CHECK(check_idle());
  if (options_.attached && !machine_) {
    return machine_error("No guest is attached to this daemon: there is no machine to migrate");
  }
  MD_CHECK(run_control_.check_may_migrate());
  // Its guest would be left without a daemon: only the one that replaces this one takes its connection up.
  if (plan.by_descriptors && !plan.to_successor && machine_->goes_on_alone()) {
    return machine_error(
        "cpr-transfer: an attached guest is a process of its own; 'migrationctl update' gives it another daemon");
  }
  // What goes on alone does not leave.
  if (!plan.to_successor || !machine_->goes_on_alone())
    MD_CHECK(machine_->check_may_leave(run_control_.state() == qmp::RunState::running));
  MD_CHECK(check_resumable(plan));
  if (plan.stopped_from_start && !plan.to_successor) MD_CHECK(check_cpr_conflicts(capabilities_));
  MD_TRY(transports::RdmaFabric* const rdma, rdma_for(address));
  MD_TRY(auto run, new_run());
  MD_TRY(run->postcopy, PostcopyControl::make());

  start_status(Direction::outgoing);
  std::optional<CprHandOver> cpr;
  if (plan.by_descriptors) {
    auto connected = hand_over();
    if (!connected) {
      fail_at_once(connected.error());
      return std::move(connected).error();
    }
    cpr = std::move(*connected);
  }
  transports::ConnectOptions connect;
  connect.start_late = plan.by_descriptors;
  connect.allow_exec = options_.allow_exec;
  connect.pages = page_access(plan.mapped);
  connect.rdma = rdma;
  auto target = transports::prepare_outgoing(address, fds, connect);
  if (!target) {
    fail_at_once(target.error());
    return std::move(target).error();
  }
  last_peer_ = transports::to_string(address);
  run->progress = progress_;
  run->source = std::make_unique<MigrationSource>(std::move(plan), std::move(*target), options_.uuid, *machine_,
                                                  run_control_, limits_, *progress_, run->events, *run->stop,
                                                  *run->continue_gate, *run->postcopy);
  if (cpr) run->source->hand_over_by(std::move(*cpr));
  run_ = std::move(run);
  return start_mover([](Run& started) { started.source_outcome = started.source->run(); });
}

Result<transports::RdmaFabric*> DaemonService::rdma_for(const transports::Address& address) {
  if (!std::holds_alternative<transports::RdmaAddress>(address)) return nullptr;
  if (!options_.rdma) {
    MD_TRY(options_.rdma, transports::make_rdma_fabric());
  }
  return options_.rdma.get();
}

// What the capability instant-resume is for, and what else cannot be done with a machine that is still in its file.
Result<void> DaemonService::check_resumable(const SourcePlan& plan) const {
  const bool at_once = plan.postcopy && plan.postcopy->at_once;
  if (machine_->page_origin() != nullptr && !at_once) {
    return machine_error(
        "The machine's memory is still in the file it was opened from: it can be sent by instant resume only "
        "(capabilities postcopy-ram and __org.migrationd_instant-resume); load the file without the latter for the "
        "rest");
  }
  if (!at_once || run_control_.outgoing_state_name() == "running") return {};
  return machine_error(fmt::format(
      "The machine is not running (its state is '{}'), and a postcopy destination runs what it gets: 'cont' here lets "
      "it run there; a destination started with -S keeps it stopped",
      printable(run_control_.outgoing_state_name())));
}

// A new connection for a paused postcopy. The mover takes it up.
Result<void> DaemonService::resume_migration(const transports::Address& address, transports::FdSource& fds) {
  if (!run_ || !run_->source || lifecycle_.status() != MigrationStatus::postcopy_paused) {
    return plan_error("Cannot resume if there is no paused migration");
  }
  // The capabilities cannot have changed meanwhile; the address can.
  MD_TRY(const SourcePlan plan, make_source_plan(capabilities_, parameters_, address));
  if (!plan.postcopy) return plan_error("Postcopy needs a destination that can ask for pages (tcp, unix, vsock, fd)");
  transports::ConnectOptions connect;
  connect.allow_exec = options_.allow_exec;
  MD_TRY(auto target, transports::prepare_outgoing(address, fds, connect));
  last_peer_ = transports::to_string(address);
  run_->postcopy->give_target(std::move(target));
  return {};
}

// Ended by `yank`, not by migrate_cancel: to the client the channel broke (qmp.md 9.9). Ended for want of the guest:
// that is why.
std::string DaemonService::text_of(const Error& error, bool cancelled) const {
  if (!error.is_cancelled()) return error.text();
  if (guest_lost_) return "the guest is gone: " + *guest_lost_;
  return cancelled ? "" : "Channel error: Input/output error";
}

void DaemonService::finish_outgoing(Run& run) {
  SourceOutcome& outcome = *run.source_outcome;
  log_summary(run, outcome.result);
  if (outcome.result) return take_status(MigrationStatus::completed);

  const Error& error = outcome.result.error();
  // A cancel that came after the point of no return did not cancel anything: the truth is `failed`.
  const bool cancelled =
      lifecycle_.status() == MigrationStatus::cancelling && outcome.ownership == Ownership::ours && !guest_lost_;
  error_text_ = text_of(error, cancelled);
  if (error_text_->empty()) error_text_.reset();
  if (cancelled) {
    if (outcome.resumed) events_.resume();
    take_status(MigrationStatus::cancelled);
  } else {
    take_status(MigrationStatus::failed);
    if (outcome.resumed) events_.resume();
  }
}

// --- incoming ---------------------------------------------------------------------------------------------------

Result<void> DaemonService::migrate_incoming(const transports::Address& address, bool exit_on_error,
                                             transports::FdSource& fds) {
  if (cpr_ && !lifecycle_.in_progress()) return cpr_main_given(address, exit_on_error, fds);
  return start_incoming(address, exit_on_error, fds, nullptr);
}

// `descriptors`: the machine's memory is among them; taken once nothing can fail any more.
Result<void> DaemonService::start_incoming(const transports::Address& address, bool exit_on_error,
                                           transports::FdSource& fds, std::vector<cpr::NamedDescriptor>* descriptors) {
  MD_TRY(IncomingFile file, look_at_incoming(address, capabilities_, fds));
  MD_TRY(DestinationPlan plan,
         make_destination_plan(file.capabilities, parameters_, file.address, descriptors != nullptr));
  plan.goes_on = file.goes_on;
  if (run_control_.state() != qmp::RunState::inmigrate) {
    if (direction_ == Direction::incoming) return plan_error("The incoming migration has already been started");
    return plan_error("'-incoming' was not specified on the command line");
  }
  if (lifecycle_.in_progress()) return plan_error("The incoming migration has already been started");
  if (options_.attached && (!machine_ || !machine_waits_)) {
    return machine_error(
        "No guest is attached that could take a machine (md_guest_attach with MD_EMPTY): start it first");
  }
  MD_TRY(auto run, new_run());
  MD_TRY(run->recovery, RecoveryControl::make());
  // Better now than in the middle of a migration. A guest elsewhere is asked at ADVISE, by a thread that may wait.
  if (auto* const space = machine_ ? machine_->guest_space() : nullptr;
      plan.postcopy && space != nullptr && space->is_here())
    MD_CHECK(postcopy::check_userfaultfd(machine_->ram(), *space));

  transports::ListenOptions listen;
  listen.allow_exec = options_.allow_exec;
  listen.inherited_fds = options_.inherited_fds;
  listen.pages = plan.lazy ? transports::PageAccess::cached : page_access(plan.mapped);
  if (plan.multifd) listen.backlog = static_cast<int>(plan.multifd->channels) + 1;
  if (plan.postcopy && plan.postcopy->preempt) listen.backlog = 2;
  listen.filter = std::move(file.filter);
  MD_TRY(listen.rdma, rdma_for(file.address));
  MD_TRY(auto target, transports::open_incoming(file.address, fds, listen));
  if (const auto* fd = std::get_if<transports::FdAddress>(&address)) {
    // An inherited descriptor is used once.
    std::erase_if(options_.inherited_fds, [&](int number) { return std::to_string(number) == fd->name; });
  }

  start_status(Direction::incoming);
  last_peer_ = transports::to_string(address);
  if (auto* listener = target.listener()) listening_ = listener->bound_addresses();
  if (auto* listener = target.rdma()) listening_ = {listener->bound_address()};
  std::unique_ptr<MachineReceiver> receiver;
  if (machine_) {
    receiver = std::make_unique<ResidentReceiver>(*machine_);
  } else {
    receiver = std::make_unique<ParkedReceiver>(options_.memory_files);
  }
  run->progress = progress_;
  run->exit_on_error = exit_on_error;
  run->destination =
      std::make_unique<MigrationDestination>(plan, std::move(target), std::move(receiver), options_.uuid, run_control_,
                                             *progress_, run->events, *run->stop, *run->recovery);
  if (descriptors != nullptr) run->destination->take_descriptors(std::move(*descriptors));
  run_ = std::move(run);
  return start_mover([](Run& started) { started.destination_outcome = started.destination->run(); });
}

void DaemonService::finish_incoming(Run& run) {
  DestinationOutcome& outcome = *run.destination_outcome;
  if (outcome.machine) machine_ = std::move(outcome.machine);
  lost_ = outcome.lost;
  stranded_ = outcome.stranded;
  // What came of it is nothing that another stream could be loaded into.
  if (lost_ && options_.attached) machine_waits_ = false;
  blocktime_ = std::move(outcome.blocktime);
  log_summary(run, outcome.result);
  if (outcome.result) {
    // It has its machine, and takes no other.
    cpr_.reset();
    origin_ = last_peer_;
    listening_.clear();
    take_status(MigrationStatus::completed);
    if (options_.arrived) options_.arrived();
    return;
  }
  const Error& error = outcome.result.error();
  if (cpr_) rearm_cpr();
  if (lifecycle_.status() == MigrationStatus::cancelling) return take_status(MigrationStatus::cancelled);
  error_text_ = text_of(lost_ && guest_lost_ ? cancelled_error() : error, false);
  take_status(MigrationStatus::failed);
  if (run.exit_on_error && options_.exit_on_error) options_.exit_on_error();
}

// --- both ---------------------------------------------------------------------------------------------------------

Result<void> DaemonService::start_mover(void (*work)(Run&)) {
  auto started = start_thread(run_->thread, "start the mover", [this, run = run_.get(), work] {
    {
      const auto place = run->progress->threads.enter(run->source ? "mig/src/main" : "mig/dst/main");
      work(*run);
    }
    post_([this, id = run->id] { finish_run(id); });
  });
  if (!started) {
    run_.reset();
    fail_at_once(started.error());
  }
  return started;
}

void DaemonService::finish_run(std::uint64_t id) {
  // shut_down() may have been here before the message came.
  if (!run_ || run_->id != id) return;
  if (run_->thread.joinable()) run_->thread.join();  // shut_down has joined it itself
  const std::unique_ptr<Run> run = std::move(run_);
  if (run->source) {
    finish_outgoing(*run);
    if (run->done) run->done(run->source_outcome->result);
  } else {
    finish_incoming(*run);
  }
  if (guest_dropped_) drop_guest();
}

void DaemonService::log_summary(const Run& run, const Result<void>& result) const {
  const Progress& progress = *run.progress;
  std::string text = fmt::format("migration {} {}: {}: {} ms total, {} bytes, {} pages, {} zero pages",
                                 run.source ? "to" : "from", printable(last_peer_, 200),
                                 result ? "completed" : result.error().text(), milliseconds_since(started_),
                                 progress.transferred.load(), progress.normal_pages.load(), progress.zero_pages.load());
  // Setup, standstill and passes are the source's to know.
  if (run.source) {
    text += fmt::format(", {} ms setup, {:.3f} ms downtime, {} passes", progress.setup_ms.load(),
                        static_cast<double>(progress.downtime_us.load()) / 1000, progress.passes.load());
  }
  if (result || result.error().is_cancelled()) {
    log::info("{}", text);
  } else {
    log::error("{}", text);
  }
}

bool DaemonService::in_postcopy() const noexcept {
  const MigrationStatus status = lifecycle_.status();
  return status == MigrationStatus::postcopy_active || status == MigrationStatus::postcopy_paused ||
         status == MigrationStatus::postcopy_recover_setup || status == MigrationStatus::postcopy_recover;
}

Result<void> DaemonService::cancel() {
  const bool ours_already =
      run_ && ((run_->postcopy && !run_->postcopy->cancel()) || (run_->recovery && !run_->recovery->cancel()));
  if (in_postcopy() || (lifecycle_.in_progress() && ours_already)) {
    return plan_error("Postcopy migration in progress, cannot cancel.");
  }
  if (!lifecycle_.cancel()) return {};
  emit_status();
  run_->stop->request();
  return {};
}

Result<void> DaemonService::yank() {
  if (!run_) return plan_error("Instance not found");
  // Broken, not cancelled: the migration ends as failed; a postcopy pauses.
  if (in_postcopy() && run_->break_connections()) {
    return {};
  }
  run_->stop->request();
  return {};
}

Result<void> DaemonService::continue_from(MigrationStatus state) {
  // QEMU also takes any other state that happens to be the present one; there it has no use, here it is refused.
  if (state != lifecycle_.status() || state != MigrationStatus::pre_switchover) {
    return plan_error(fmt::format("Migration not in expected state: {}", qmp::to_name(lifecycle_.status())));
  }
  run_->continue_gate->open();
  return {};
}

Result<void> DaemonService::start_postcopy() {
  if (!capabilities_.has(Capability::postcopy_ram)) {
    return plan_error("Enable postcopy with migrate_set_capability before the start of migration");
  }
  if (lifecycle_.status() == MigrationStatus::none) {
    return plan_error("Postcopy must be started after migration has been started");
  }
  if (run_ && run_->postcopy) run_->postcopy->start();
  return {};
}

Result<void> DaemonService::pause_migration() {
  const MigrationStatus status = lifecycle_.status();
  const bool can = status == MigrationStatus::postcopy_active || status == MigrationStatus::postcopy_recover;
  if (can && run_ && run_->break_connections()) {
    return {};
  }
  return plan_error("migrate-pause is currently only supported during postcopy-active or postcopy-recover state");
}

Result<void> DaemonService::recover(const transports::Address& address, transports::FdSource& fds) {
  if (lifecycle_.status() != MigrationStatus::postcopy_paused || !run_ || !run_->recovery) {
    return plan_error("Migrate recover can only be run when postcopy is paused.");
  }
  // The capabilities cannot have changed meanwhile; the address can, and what it can carry.
  MD_TRY([[maybe_unused]] const DestinationPlan plan, make_destination_plan(capabilities_, parameters_, address));
  transports::ListenOptions listen;
  listen.allow_exec = options_.allow_exec;
  listen.inherited_fds = options_.inherited_fds;
  listen.backlog = 2;
  MD_TRY(auto target, transports::open_incoming(address, fds, listen));
  last_peer_ = transports::to_string(address);
  listening_.clear();
  if (auto* listener = target.listener()) listening_ = listener->bound_addresses();
  return run_->recovery->give_target(std::move(target));
}

Result<void> DaemonService::stop() {
  MD_TRY(const bool stopped, run_control_.stop());
  if (stopped) events_.stop();
  return {};
}

Result<void> DaemonService::cont() {
  MD_TRY(const bool resumed, run_control_.cont());
  if (resumed) events_.resume();
  return {};
}

std::string DaemonService::shut_down() {
  worker_.reset();
  cpr_.reset();
  if (run_) {
    // A machine that came by postcopy cannot be cancelled, only lost.
    if (!in_postcopy() && lifecycle_.cancel()) emit_status();
    run_->stop->request();
    run_->thread.join();
    finish_run(run_->id);
  }
  return fate_of_machine();
}

// After everything has ended: in one sentence, for the log.
std::string DaemonService::fate_of_machine() const {
  if (lost_) return "the machine is lost: its memory had not arrived";
  switch (run_control_.ownership()) {
    case Ownership::none:
      return "no machine was held; one that was arriving stays with its source";
    case Ownership::handed_over:
      return "the machine has been handed over: the peer has it";
    case Ownership::unknown:
      return "the machine was sent and nobody answered: the peer may have it";
    case Ownership::ours:
      break;
  }
  if (run_control_.state() == qmp::RunState::postmigrate) return "the machine was saved to a file";
  if (machine_->page_origin() != nullptr) return "the machine is still in the file it was opened from";
  if (machine_->kind() == MachineKind::attached) return "the guest goes on by itself, and may attach again";
  return machine_->kind() == MachineKind::parked ? "the parked machine is lost: it was held in memory only"
                                                 : "the machine ends with this process";
}

}  // namespace migrationd::migration

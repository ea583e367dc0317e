// SPDX-License-Identifier: Apache-2.0
//
// DaemonService: the MigrationService of the process. Owns the machine slot, the settings, and at most one running
// migration with its mover thread.
//
// One migration is one Run: its stop, gate, progress, thread and outcome. The mover writes the outcome, posts one last
// message and ends; control joins it, draws the consequences and drops the Run. Messages of the mover arrive in the
// order it posted them, so that the last one really is.
//
// Thread: control. `post` alone is called from other threads too: by the mover, and by the Worker.
#pragma once

#include "daemon/machine/machine.hpp"
#include "daemon/machine/parked.hpp"
#include "daemon/migration/cpr_intake.hpp"
#include "daemon/migration/destination.hpp"
#include "daemon/migration/guest_keeper.hpp"
#include "daemon/migration/lifecycle.hpp"
#include "daemon/migration/live_limits.hpp"
#include "daemon/migration/run_control.hpp"
#include "daemon/migration/service.hpp"
#include "daemon/migration/source.hpp"

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace migrationd::migration {

// Runs a function on the control thread, soon, in the order of the calls. Callable from any thread.
using Post = std::function<void(std::function<void()>)>;

struct ServiceOptions {
  bool start_paused = false;          // --paused
  bool allow_exec = true;             // --allow-exec
  bool attached = false;              // the machine is a guest's that comes and goes
  std::optional<stream::Uuid> uuid;   // --uuid
  MemoryFiles memory_files;           // --machine parked,memory=...
  std::vector<int> inherited_fds;     // descriptors `fd:NUMBER` may name
  std::vector<unsigned> worker_cpus;  // --worker-cpus
  // What rdma: goes through; null: this machine's devices.
  std::shared_ptr<transports::RdmaFabric> rdma;
  // Called on control when an incoming migration failed whose exit-on-error was true.
  std::function<void()> exit_on_error;
  // Called on control when a machine that came by take_over() is here and served.
  std::function<void()> arrived;
  // Called on control when the status changed; for the service manager's status line.
  std::function<void(const std::string&)> status_text;
};

// This daemon's machine to the process that goes on in its place (daemon/update).
struct HandOver {
  UniqueFd cpr;   // connected to the new process
  UniqueFd main;  // our end of the main channel; its own is among `extra`
  std::vector<cpr::NamedDescriptor> extra;
  std::function<void()> revoke;                   // CprHandOver::revoke
  std::function<void(const Result<void>&)> done;  // control: the new process is the daemon, or this one goes on
};

class DaemonService final : public MigrationService, public GuestKeeper, private CprListener {
 public:
  DaemonService(ServiceOptions options, EventSink& events, Post post);
  ~DaemonService() override;

  // A machine that is here from the start (synthetic). `waits`: it is a destination (--incoming) and does not run.
  void adopt_machine(std::unique_ptr<Machine> machine, bool waits);
  // --incoming with a cpr channel: listens on it from now on, and on `main` as soon as descriptors have come. Without
  // `main` (defer) migrate-incoming says where; it may do so before or after they came.
  Result<void> await_cpr(const transports::Address& cpr, std::optional<transports::Address> main,
                         transports::FdSource& fds);

  // --- this daemon is replaced by another, or replaces one (daemon/update, daemon_service_update.cpp)
  // What would go along; nothing: there is no machine. The error says why it cannot go now.
  Result<std::optional<MachineKind>> check_hand_over() const;
  // `done` is called unless this fails at once. No other migration starts meanwhile.
  Result<void> hand_over(HandOver to);
  // Ends one that takes too long: `done` is called.
  void abandon_hand_over();
  const std::string& origin() const noexcept { return origin_; }
  // The other side: the machine comes with these descriptors and by `main`; closing `cpr` says that we are ready. A
  // failure is ServiceOptions::exit_on_error, the end ServiceOptions::arrived.
  Result<void> take_over(UniqueFd cpr, UniqueFd main, std::vector<cpr::NamedDescriptor> descriptors);
  // What the daemon before was told, and where its machine came from.
  void inherit(const qmp::Capabilities& capabilities, const qmp::MigrationParameters& parameters, std::string origin);

  Result<void> guest_ready(std::unique_ptr<Machine> machine, guest::GuestState state) override;
  void guest_gone(const Error& why, std::function<void()> dropped) override;
  Result<void> check_guest_idle() const override { return check_idle(); }
  // Ends what runs, for SIGTERM: cancels and waits. Says in one sentence what became of the machine.
  std::string shut_down();
  // After shut_down(): a guest of this process waits for pages that will never come, so its threads cannot be ended and
  // its memory cannot be freed. Only the end of the process is left, at once.
  bool guest_is_stranded() const noexcept { return stranded_; }

  const qmp::Capabilities& capabilities() const override { return capabilities_; }
  const qmp::MigrationParameters& parameters() const override { return parameters_; }
  Result<void> replace_capabilities(const qmp::Capabilities& capabilities) override;
  void replace_parameters(const qmp::MigrationParameters& parameters) override;
  bool incoming_started() const override;

  Result<void> migrate(const transports::Address& address, const std::optional<transports::Address>& cpr, bool resume,
                       transports::FdSource& fds) override;
  Result<void> migrate_incoming(const transports::Address& address, bool exit_on_error,
                                transports::FdSource& fds) override;
  Result<void> cancel() override;
  Result<void> continue_from(qmp::MigrationStatus state) override;
  Result<void> start_postcopy() override;
  Result<void> pause_migration() override;
  Result<void> recover(const transports::Address& address, transports::FdSource& fds) override;
  bool in_progress() const override { return lifecycle_.in_progress(); }
  Result<void> yank() override;
  qmp::MigrationInfo info() const override;
  std::vector<Thread> threads() const override;

  qmp::RunState run_state() const override { return run_control_.state(); }
  Result<void> stop() override;
  Result<void> cont() override;

  Result<qmp::MachineInfo> query_machine() const override;
  void verify_machine(std::function<void(Result<nlohmann::json>)> done) override;
  void measure_dirty_rate(std::chrono::milliseconds period, std::function<void(Result<std::uint64_t>)> done) override;

 private:
  enum class Direction { none, outgoing, incoming };
  struct Run;
  // A new process's wait for descriptors.
  struct CprWait {
    explicit CprWait(transports::IncomingTarget from) : socket(std::move(from)) {}
    transports::IncomingTarget socket;
    std::unique_ptr<CprIntake> intake;
    std::optional<std::vector<cpr::NamedDescriptor>> descriptors;  // came, and nobody listens on the main channel yet
    std::optional<transports::Address> main;                       // the main channel, once it is known
    bool main_is_for_once = false;                                 // migrate-incoming's is for one attempt
    bool exit_on_error = false;
    transports::FdSource* fds = nullptr;
  };
  class Worker;
  class PostingEvents;

  void cpr_arrived(std::uint64_t intake, Result<std::vector<cpr::NamedDescriptor>> descriptors) override;
  void cpr_given_up(std::uint64_t intake) override;
  static Result<CprHandOver> connect_cpr(const transports::Address& address);
  Result<void> listen_for_cpr();
  void rearm_cpr();
  void cpr_failed(const Error& error);
  Result<void> cpr_main_given(const transports::Address& main, bool exit_on_error, transports::FdSource& fds);
  Result<void> start_by_cpr();
  Result<void> start_outgoing(const transports::Address& address, SourcePlan plan,
                              const std::function<Result<CprHandOver>()>& hand_over, transports::FdSource& fds);
  Result<void> start_incoming(const transports::Address& address, bool exit_on_error, transports::FdSource& fds,
                              std::vector<cpr::NamedDescriptor>* descriptors);
  Result<void> hand_over_nothing(HandOver to);
  Result<std::unique_ptr<Run>> new_run();
  void start_status(Direction direction);
  void fail_at_once(const Error& error);
  std::string fate_of_machine() const;
  void take_status(qmp::MigrationStatus status);
  void take_paused(const std::string& why);
  void take_pass(std::uint64_t pass);
  Result<void> resume_migration(const transports::Address& address, transports::FdSource& fds);
  void emit_status();
  Result<void> start_mover(void (*work)(Run&));
  void finish_run(std::uint64_t id);
  void finish_outgoing(Run& run);
  void finish_incoming(Run& run);
  bool in_postcopy() const noexcept;
  void log_summary(const Run& run, const Result<void>& result) const;
  Result<void> check_idle() const;
  Result<void> check_resumable(const SourcePlan& plan) const;
  void on_worker_done();
  void drop_guest();
  std::string text_of(const Error& error, bool cancelled) const;
  qmp::XbzrleCacheStats xbzrle_stats() const;
  std::optional<qmp::RdmaStats> rdma_stats() const;
  // What rdma: addresses go through; null for others. Made when it is first needed.
  Result<transports::RdmaFabric*> rdma_for(const transports::Address& address);
  qmp::MigrationRamStats ram_stats() const;

  ServiceOptions options_;
  EventSink& events_;
  Post post_;
  qmp::Capabilities capabilities_;
  qmp::MigrationParameters parameters_;
  LiveLimits limits_;
  std::unique_ptr<Machine> machine_;
  bool lost_ = false;                                   // a machine came by postcopy, and its memory never will
  bool stranded_ = false;                               // and threads of its guest wait for that
  std::optional<postcopy::BlocktimeReport> blocktime_;  // of the last incoming postcopy
  bool machine_waits_ = false;                          // a resident machine that is a destination
  std::optional<std::string> guest_lost_;               // why the guest of the machine is gone
  std::function<void()> guest_dropped_;                 // whom to tell when its machine is
  RunControl run_control_;
  Lifecycle lifecycle_;
  Direction direction_ = Direction::none;
  // The last migration's numbers outlive its Run, for query-migrate.
  std::shared_ptr<Progress> progress_;
  Clock::time_point started_{};
  std::optional<std::string> error_text_;
  std::vector<transports::Address> listening_;
  std::string last_peer_;  // of the latest migration, for the log
  std::string origin_;     // where the machine came from
  std::unique_ptr<CprWait> cpr_;
  std::unique_ptr<Run> run_;
  // verify-machine or calc-dirty-rate at work; no migration starts meanwhile.
  std::unique_ptr<Worker> worker_;
};

// The word of a new process that has taken over where there is no stream: that of a stream's destination.
Result<void> say_taken_over(int main);

}  // namespace migrationd::migration

// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/plan.hpp"

#include <fmt/format.h>

#include <array>
#include <variant>

namespace migrationd::migration {
namespace {

using qmp::Capabilities;
using qmp::Capability;
using transports::Address;

template <class Kind>
bool is(const Address& address) noexcept {
  return std::holds_alternative<Kind>(address);
}

bool takes_many_channels(const Address& address, bool mapped_ram) noexcept {
  return is<transports::InetAddress>(address) || is<transports::UnixAddress>(address) ||
         is<transports::VsockAddress>(address) || (is<transports::FileAddress>(address) && mapped_ram);
}

// The matrix of file-and-channels.md section 6, in QEMU's order. A row whose capability this build lacks cannot be
// reached yet; it stands here because the matrix belongs in one place.
Result<void> check_transport(const Capabilities& capabilities, const qmp::MigrationParameters& parameters,
                             const Address& address) {
  const bool mapped_ram = capabilities.has(Capability::mapped_ram);
  if (mapped_ram && !is<transports::FileAddress>(address)) {
    return plan_error("Migration requires seekable transport (e.g. file)");
  }
  const bool many = capabilities.has(Capability::multifd) || capabilities.has(Capability::postcopy_preempt);
  if (many && !takes_many_channels(address, mapped_ram)) {
    return plan_error("Migration requires multi-channel URIs (e.g. tcp)");
  }
  if (is<transports::RdmaAddress>(address) && capabilities.has(Capability::xbzrle)) {
    return plan_error("RDMA and XBZRLE can't be used together");
  }
  if (is<transports::RdmaAddress>(address) &&
      (capabilities.has(Capability::x_ignore_shared) || parameters.mode != qmp::MigMode::normal)) {
    return plan_error(
        "RDMA moves all memory: x-ignore-shared and the cpr modes leave some where it is, which no RDMA destination "
        "takes");
  }
  if (parameters.mode == qmp::MigMode::cpr_transfer && is<transports::FileAddress>(address)) {
    return plan_error("Migration requires streamable transport (eg unix)");
  }
  return {};
}

// What 10.0 takes and then makes an unusable file of, or never ends (file-and-channels.md 2.8). Refused at the start.
constexpr std::array spoils_mapped_ram{Capability::background_snapshot, Capability::x_ignore_shared, Capability::x_colo,
                                       Capability::return_path};

Result<void> check_mapped_ram(const Capabilities& capabilities, const qmp::MigrationParameters& parameters) {
  if (parameters.multifd_compression != qmp::MultifdCompression::none) {
    return plan_error("Cannot use compression with mapped-ram");
  }
  if (!parameters.tls_creds.empty()) return plan_error("Cannot use TLS with mapped-ram");
  for (const Capability other : spoils_mapped_ram) {
    if (!capabilities.has(other)) continue;
    return plan_error(fmt::format("Mapped-ram migration is incompatible with {}", qmp::to_name(other)));
  }
  return {};
}

// QEMU looks at direct-io only together with multifd. Where we open the file ourselves that is no reason; a client that
// passes descriptors for a plain mapped-ram file passes none for direct I/O.
std::optional<MappedPlan> mapped_plan(const Capabilities& capabilities, const qmp::MigrationParameters& parameters,
                                      const Address& address) {
  if (!capabilities.has(Capability::mapped_ram)) return std::nullopt;
  const bool from_set = std::get<transports::FileAddress>(address).path.starts_with("/dev/fdset/");
  const bool multifd = capabilities.has(Capability::multifd);
  MappedPlan plan;
  plan.direct_io = parameters.direct_io && (multifd || !from_set);
  if (multifd) plan.workers = parameters.multifd_channels;
  plan.detect_zeros = parameters.zero_page_detection != qmp::ZeroPageDetection::none;
  return plan;
}

// Can the far end answer on the same channel? Descriptors are asked when they are there (MigrationSource::connect).
// A command could relay both ways, but none says so, and waiting for an answer from `cat` would never end.
bool can_answer(const Address& address) noexcept {
  return !is<transports::FileAddress>(address) && !is<transports::ExecAddress>(address);
}

// Over files it means workers on one file, and no channels.
std::optional<MultifdPlan> multifd_plan(const Capabilities& capabilities, const qmp::MigrationParameters& parameters) {
  if (!capabilities.has(Capability::multifd) || capabilities.has(Capability::mapped_ram)) return std::nullopt;
  MultifdPlan plan;
  plan.channels = parameters.multifd_channels;
  plan.zero_pages = parameters.zero_page_detection;
  plan.zero_copy = capabilities.has(Capability::zero_copy_send);
  switch (parameters.multifd_compression) {
    case qmp::MultifdCompression::none:
      break;
    case qmp::MultifdCompression::zlib:
      plan.method = stream::MultifdMethod::zlib;
      plan.level = parameters.multifd_zlib_level;
      break;
    case qmp::MultifdCompression::zstd:
      plan.method = stream::MultifdMethod::zstd;
      plan.level = parameters.multifd_zstd_level;
      break;
  }
  return plan;
}

// Descriptor sets have no name that anything could lie beside.
std::string file_name(const transports::FileAddress& file) {
  return file.path.starts_with("/dev/fdset/") ? std::string() : file.path;
}

// With the capability on, an address that cannot answer is still good for a save or a plain migration.
Result<std::optional<PostcopyPlan>> postcopy_plan(const Capabilities& capabilities,
                                                  const qmp::MigrationParameters& parameters, const Address& address) {
  const bool at_once = capabilities.has(Capability::instant_resume);
  if (!capabilities.has(Capability::postcopy_ram) || !can_answer(address)) {
    // A save goes to a file as ever.
    if (!at_once || is<transports::FileAddress>(address)) return std::optional<PostcopyPlan>();
    if (can_answer(address)) return plan_error("Instant resume is a kind of postcopy: switch postcopy-ram on, too");
    return plan_error("Instant resume needs a destination that can ask for pages (tcp, unix, vsock, fd)");
  }
  PostcopyPlan plan;
  plan.at_once = at_once;
  plan.preempt = capabilities.has(Capability::postcopy_preempt);
  auto sizes = qmp::parse_page_sizes(parameters.page_sizes);
  if (!sizes) return plan_error(sizes.error().text());
  plan.page_sizes = std::move(*sizes);
  plan.working_set = at_once && parameters.working_set;
  return std::optional<PostcopyPlan>(std::move(plan));
}

}  // namespace

namespace {

// Of a new process: the main stream of cpr-transfer.
Result<void> check_cpr_main(const Capabilities& capabilities, const Address& address) {
  if (is<transports::FileAddress>(address)) return plan_error("Migration requires streamable transport (eg unix)");
  if (const auto* inet = std::get_if<transports::InetAddress>(&address); inet != nullptr && inet->port == "0") {
    return plan_error("cpr-transfer: the old process must know the main channel's port: it cannot be 0");
  }
  if (capabilities.has(Capability::postcopy_ram)) return plan_error("Cannot use postcopy with CPR");
  return {};
}

}  // namespace

Result<void> check_cpr_conflicts(const Capabilities& capabilities) {
  if (capabilities.has(Capability::postcopy_ram) || capabilities.has(Capability::dirty_bitmaps)) {
    return plan_error("Cannot use postcopy with CPR");
  }
  if (capabilities.has(Capability::background_snapshot)) return plan_error("Cannot use background snapshot with CPR");
  if (capabilities.has(Capability::x_colo)) return plan_error("Cannot use COLO with CPR");
  return {};
}

Result<SourcePlan> make_source_plan(const Capabilities& capabilities, const qmp::MigrationParameters& parameters,
                                    const Address& address, bool cpr_channel) {
  MD_CHECK(check_transport(capabilities, parameters, address));
  const bool by_descriptors = parameters.mode == qmp::MigMode::cpr_transfer;
  if (by_descriptors && !cpr_channel) return plan_error("missing 'cpr' migration channel");
  if (capabilities.has(Capability::mapped_ram)) MD_CHECK(check_mapped_ram(capabilities, parameters));
  if (!parameters.tls_creds.empty()) {
    return plan_error("TLS is not built into this daemon yet: clear tls-creds");
  }
  SourcePlan plan;
  plan.mapped = mapped_plan(capabilities, parameters, address);
  plan.return_path = capabilities.has(Capability::return_path) && can_answer(address);
  plan.switchover_ack = capabilities.has(Capability::switchover_ack) && plan.return_path;
  plan.pause_before_switchover = capabilities.has(Capability::pause_before_switchover);
  plan.xbzrle = capabilities.has(Capability::xbzrle);
  plan.auto_converge = capabilities.has(Capability::auto_converge);
  plan.skip_holes = capabilities.has(Capability::skip_holes);
  plan.validate_uuid = capabilities.has(Capability::validate_uuid);
  plan.multifd = multifd_plan(capabilities, parameters);
  if (is<transports::RdmaAddress>(address))
    plan.rdma = RdmaPlan{capabilities.has(Capability::rdma_pin_all), parameters.rdma_queue_pairs};
  plan.by_descriptors = by_descriptors;
  plan.ignore_shared = capabilities.has(Capability::x_ignore_shared);
  plan.stopped_from_start = parameters.mode != qmp::MigMode::normal;
  // Of cpr it is a conflict, told in its place.
  if (plan.stopped_from_start) return plan;
  MD_TRY(plan.postcopy, postcopy_plan(capabilities, parameters, address));
  if (plan.postcopy) {
    plan.return_path = true;  // requests come that way
    // A page that was left out as a hole would be waited for: the destination believes that it is still to come.
    plan.skip_holes = false;
  }
  return plan;
}

Result<DestinationPlan> make_destination_plan(const Capabilities& capabilities,
                                              const qmp::MigrationParameters& parameters, const Address& address,
                                              bool cpr_channel) {
  if (cpr_channel) MD_CHECK(check_cpr_main(capabilities, address));
  MD_CHECK(check_transport(capabilities, parameters, address));
  if (!cpr_channel && parameters.mode == qmp::MigMode::cpr_transfer) {
    return plan_error(
        "cpr-transfer: the machine's descriptors come over a 'cpr' channel, which is given at the start (--incoming)");
  }
  if (!parameters.tls_creds.empty()) {
    return plan_error("TLS is not built into this daemon yet: clear tls-creds");
  }
  const bool from_file = is<transports::FileAddress>(address);
  DestinationPlan plan;
  plan.memory_is_here = cpr_channel;
  plan.ignore_shared = capabilities.has(Capability::x_ignore_shared);
  plan.lazy = capabilities.has(Capability::instant_resume) && from_file;
  if (from_file) plan.file_path = file_name(std::get<transports::FileAddress>(address));
  plan.mapped = mapped_plan(capabilities, parameters, address);
  plan.switchover_ack = capabilities.has(Capability::switchover_ack);
  if (plan.lazy && plan.ignore_shared) {
    return plan_error(
        "A file is opened without being loaded only if all memory is in it: x-ignore-shared leaves some out");
  }
  if (capabilities.has(Capability::postcopy_ram) && !cpr_channel) {
    plan.postcopy = PostcopyArrivalPlan{capabilities.has(Capability::postcopy_preempt),
                                        capabilities.has(Capability::postcopy_blocktime)};
  }
  plan.multifd = multifd_plan(capabilities, parameters);
  return plan;
}

}  // namespace migrationd::migration

// SPDX-License-Identifier: Apache-2.0
#include "daemon/update/inheritance.hpp"

#include "daemon/machine/guest_record.hpp"
#include "daemon/machine/own_descriptors.hpp"
#include "daemon/migration/cpr_channel.hpp"
#include "guest/sealed_state.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <utility>

namespace migrationd::update {
namespace {

// The record in a sealed memfd; `most` bounds it.
Result<Bytes> record_of(const UniqueFd& fd, std::size_t most) {
  struct stat facts {};
  if (::fstat(fd.get(), &facts) != 0) return Error::from_errno("look at a record of the daemon before");
  const auto length = static_cast<std::uint64_t>(facts.st_size);
  if (length > most) return Error(ErrorKind::limit, fmt::format("a record of {} bytes", length));
  return guest::read_state(fd.get(), length);
}

UniqueFd take(std::vector<cpr::NamedDescriptor>& entries, std::int32_t id) {
  const auto found = std::find_if(entries.begin(), entries.end(),
                                  [&](const auto& entry) { return entry.name == own_descriptors && entry.id == id; });
  if (found == entries.end()) return {};
  UniqueFd fd = std::move(found->fd);
  entries.erase(found);
  return fd;
}

}  // namespace

Result<Inheritance> take_inheritance(std::vector<cpr::NamedDescriptor> entries) {
  Inheritance out;
  const UniqueFd settings = take(entries, settings_id);
  if (!settings) return wire_error("the daemon before sent no settings");
  MD_TRY(const Bytes record, record_of(settings, settings_bytes));
  MD_TRY(out.settings, decode_settings(record));
  out.main = take(entries, main_channel_id);
  if (!out.main) return wire_error("the daemon before sent no main channel");
  for (std::size_t i = 0; i < out.settings.control_paths.size(); ++i) {
    out.control.push_back(take(entries, first_control_id + static_cast<std::int32_t>(i)));
    if (!out.control.back()) return wire_error(fmt::format("control socket {} was not handed over", i));
  }
  out.door = take(entries, guest_door_id);
  out.guest = take(entries, guest_connection_id);
  if (const UniqueFd registration = take(entries, guest_registration_id)) {
    MD_TRY(out.registration, record_of(registration, registration_bytes));
  }
  if (out.settings.machine == "attached" && (!out.guest || out.registration.empty()))
    return wire_error("the guest's connection or registration was not handed over");
  out.rest = std::move(entries);
  return out;
}

Result<Inheritance> receive_inheritance(UniqueFd cpr, const StopSource& stop) {
  MD_TRY(auto received,
         migration::receive_descriptors(cpr.get(), stop, std::chrono::steady_clock::now() + inheritance_wait));
  if (received.untouched) return Error(ErrorKind::peer, "the daemon before ended without a word");
  MD_TRY(Inheritance out, take_inheritance(std::move(received.entries)));
  out.cpr = std::move(cpr);
  return out;
}

}  // namespace migrationd::update

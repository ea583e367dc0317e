// SPDX-License-Identifier: Apache-2.0
#include "protocol/qmp/events.hpp"

#include "protocol/qmp/encode.hpp"

namespace migrationd::qmp {

template <class E>
OrderedJson encode_event(const E& event, std::chrono::system_clock::time_point when) {
  using std::chrono::duration_cast;
  using std::chrono::microseconds;
  using std::chrono::seconds;
  const auto since = duration_cast<microseconds>(when.time_since_epoch());
  const auto whole = std::chrono::floor<seconds>(since);
  OrderedJson out = OrderedJson::object();
  out["timestamp"] = OrderedJson::object({{"seconds", whole.count()}, {"microseconds", (since - whole).count()}});
  out["event"] = std::string(E::name);
  if (auto data = encode(event); !data.empty()) out["data"] = std::move(data);
  return out;
}

template OrderedJson encode_event(const event::Migration&, std::chrono::system_clock::time_point);
template OrderedJson encode_event(const event::MigrationPass&, std::chrono::system_clock::time_point);
template OrderedJson encode_event(const event::Stop&, std::chrono::system_clock::time_point);
template OrderedJson encode_event(const event::Resume&, std::chrono::system_clock::time_point);
template OrderedJson encode_event(const event::Shutdown&, std::chrono::system_clock::time_point);
template OrderedJson encode_event(const event::Reset&, std::chrono::system_clock::time_point);
template OrderedJson encode_event(const event::Powerdown&, std::chrono::system_clock::time_point);

}  // namespace migrationd::qmp

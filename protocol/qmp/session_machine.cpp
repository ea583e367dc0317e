// SPDX-License-Identifier: Apache-2.0
#include "protocol/qmp/session_machine.hpp"

#include "protocol/qmp/decode.hpp"
#include "protocol/qmp/encode.hpp"
#include "protocol/qmp/json_writer.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace migrationd::qmp {

namespace {

std::string_view class_name(ErrorClass error_class) {
  switch (error_class) {
    case ErrorClass::generic:
      return "GenericError";
    case ErrorClass::command_not_found:
      return "CommandNotFound";
    case ErrorClass::device_not_active:
      return "DeviceNotActive";
    case ErrorClass::device_not_found:
      return "DeviceNotFound";
    case ErrorClass::kvm_missing_cap:
      return "KVMMissingCap";
  }
  return "GenericError";
}

QmpError not_found(std::string text) { return QmpError(std::move(text), ErrorClass::command_not_found); }

std::optional<Json> id_of(const Json& request) {
  if (!request.is_object()) return std::nullopt;
  const auto found = request.find("id");
  if (found == request.end()) return std::nullopt;
  return *found;
}

}  // namespace

OrderedJson make_reply(const QmpResult<OrderedJson>& result, const std::optional<Json>& id) {
  OrderedJson out = OrderedJson::object();
  if (result) {
    out["return"] = *result;
    if (id) out["id"] = OrderedJson(*id);
    return out;
  }
  if (id) out["id"] = OrderedJson(*id);
  out["error"] = OrderedJson::object(
      {{"class", std::string(class_name(result.error().error_class()))}, {"desc", result.error().text()}});
  return out;
}

SessionMachine::SessionMachine(VersionInfo version, bool offer_oob)
    : version_(std::move(version)), offer_oob_(offer_oob) {}

std::string SessionMachine::greeting() const {
  OrderedJson qmp = OrderedJson::object();
  qmp["version"] = encode(version_);
  qmp["capabilities"] = OrderedJson::array();
  if (offer_oob_) qmp["capabilities"].push_back("oob");
  return write_line(OrderedJson::object({{"QMP", std::move(qmp)}}));
}

bool SessionMachine::wants_input() const noexcept {
  if (!running_) return true;
  return oob_enabled_ && queue_.size() < limits::qmp_queued_requests;
}

// `exec-oob` counts only once it was negotiated; with both keys the request is an ordinary bad one.
bool SessionMachine::is_out_of_band(const Json& document) const {
  return oob_enabled_ && document.is_object() && document.contains("exec-oob") && !document.contains("execute");
}

std::vector<Action> SessionMachine::feed(Document document) {
  std::vector<Action> actions;
  const auto* json = std::get_if<Json>(&document.content);
  if (json != nullptr && is_out_of_band(*json)) {
    start(std::move(document), true, actions);
    return actions;
  }
  queue_.push_back(std::move(document));
  start_next(actions);
  return actions;
}

std::vector<Action> SessionMachine::finished(std::uint64_t serial, const QmpResult<OrderedJson>& result) {
  std::vector<Action> actions;
  const auto found = ids_.find(serial);
  if (found == ids_.end()) return actions;
  actions.emplace_back(SendLine{write_line(make_reply(result, found->second))});
  ids_.erase(found);
  if (running_ == serial) running_.reset();
  start_next(actions);
  return actions;
}

void SessionMachine::start_next(std::vector<Action>& actions) {
  while (!running_ && !queue_.empty()) {
    auto document = std::move(queue_.front());
    queue_.pop_front();
    start(std::move(document), false, actions);
  }
}

void SessionMachine::start(Document document, bool out_of_band, std::vector<Action>& actions) {
  const auto reply = [&](const QmpResult<OrderedJson>& result, const std::optional<Json>& id) {
    actions.emplace_back(SendLine{write_line(make_reply(result, id))});
  };
  if (const auto* error = std::get_if<QmpError>(&document.content)) return reply(*error, std::nullopt);
  auto& request = std::get<Json>(document.content);
  const auto id = id_of(request);
  const auto command = check(request);
  if (!command) return reply(command.error(), id);
  Json arguments = request.contains("arguments") ? std::move(request["arguments"]) : Json::object();
  if ((*command)->name == cmd::QmpCapabilities::name) return reply(negotiate(arguments), id);
  const auto serial = next_serial_++;
  ids_.emplace(serial, id);
  if (!out_of_band) running_ = serial;
  actions.emplace_back(RunCommand{serial, *command, std::move(arguments), out_of_band, document.end});
}

// The order of qmp.md 3; where QEMU's order is that of a hash table, it is the table's there.
QmpResult<> SessionMachine::check_shape(const Json& request) const {
  if (!request.is_object()) return QmpError("QMP input must be a JSON object");
  const bool has_execute = request.contains("execute");
  for (const auto* name : {"execute", "exec-oob"}) {
    const auto found = request.find(name);
    if (found == request.end()) continue;
    const bool is_oob = std::string_view(name) == "exec-oob";
    if (is_oob && !oob_enabled_) return QmpError("QMP input member 'exec-oob' is unexpected");
    if (!found->is_string()) return QmpError(fmt::format("QMP input member '{}' must be a string", name));
    if (is_oob && has_execute) return QmpError("QMP input member 'execute' clashes with 'exec-oob'");
  }
  const auto arguments = request.find("arguments");
  if (arguments != request.end() && !arguments->is_object())
    return QmpError("QMP input member 'arguments' must be an object");
  for (const auto& item : request.items()) {
    const auto& key = item.key();
    if (key != "execute" && key != "exec-oob" && key != "arguments" && key != "id")
      return QmpError(fmt::format("QMP input member '{}' is unexpected", key));
  }
  if (!has_execute && !request.contains("exec-oob")) return QmpError("QMP input lacks member 'execute'");
  return {};
}

QmpResult<const CommandInfo*> SessionMachine::check(const Json& request) const {
  MD_CHECK(check_shape(request));
  const bool out_of_band = request.contains("exec-oob");
  const auto& name = request.at(out_of_band ? "exec-oob" : "execute").get_ref<const std::string&>();
  const auto* command = find_command(name);
  const bool is_negotiation = name == cmd::QmpCapabilities::name;
  if (!negotiated_ && !is_negotiation) return not_found("Expecting capabilities negotiation with 'qmp_capabilities'");
  if (negotiated_ && is_negotiation) return not_found("Capabilities negotiation is already complete, command ignored");
  if (command == nullptr) return not_found(fmt::format("The command {} has not been found", name));
  if (out_of_band && !command->allow_oob) return QmpError(fmt::format("The command {} does not support OOB", name));
  return command;
}

QmpResult<OrderedJson> SessionMachine::negotiate(const Json& arguments) {
  MD_TRY(const auto args, decode<QmpCapabilitiesArgs>(arguments));
  const bool wants_oob = args.enable && !args.enable->empty();
  if (wants_oob && !offer_oob_) return QmpError("Capability oob not available");
  oob_enabled_ = wants_oob;
  negotiated_ = true;
  return OrderedJson::object();
}

}  // namespace migrationd::qmp

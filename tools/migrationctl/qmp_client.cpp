// SPDX-License-Identifier: Apache-2.0
#include "tools/migrationctl/qmp_client.hpp"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>

namespace migrationd::ctl {

namespace {

// query-qmp-schema, the longest reply, has some 300 KB.
constexpr std::size_t max_line = std::size_t{64} << 20;

Error unreachable(const std::string& path, int err) {
  const char* hint = "";
  if (err == ENOENT || err == ECONNREFUSED) hint = " (is the daemon running? migrationd --qmp unix:PATH starts one)";
  if (err == EACCES || err == EPERM) hint = " (the socket's mode and group decide who may)";
  Error reason = Error::from_errno(fmt::format("cannot reach the daemon at {}", printable(path, 256)), err);
  return Error(ErrorKind::io, reason.text() + hint);
}

}  // namespace

Result<QmpClient> QmpClient::connect(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return unreachable(path, ENAMETOOLONG);
  std::memcpy(address.sun_path, path.data(), path.size());
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket) return Error::from_errno("make a socket");
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return unreachable(path, errno);
  QmpClient client(std::move(socket));
  client.path_ = path;
  MD_TRY(const Json greeting, client.receive());
  if (!greeting.contains("QMP"))
    return Error(ErrorKind::io, fmt::format("{} does not speak QMP", printable(path, 256)));
  MD_CHECK(client.execute("qmp_capabilities"));
  return client;
}

Result<Json> QmpClient::execute(std::string_view command, Json arguments) {
  Json request = {{"execute", command}, {"id", "migrationctl"}};
  if (!arguments.empty()) request["arguments"] = std::move(arguments);
  MD_CHECK(send(request));
  while (true) {
    MD_TRY(Json reply, receive());
    if (reply.contains("event")) continue;
    if (reply.contains("return")) return std::move(reply["return"]);
    const auto error = reply.find("error");
    if (error == reply.end() || !error->is_object())
      return Error(ErrorKind::io, "the daemon's reply is neither a result nor an error");
    return Error(ErrorKind::peer, error->value("desc", "unknown error"));
  }
}

Result<void> QmpClient::send(const Json& request) {
  const std::string text = request.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  std::size_t sent = 0;
  while (sent < text.size()) {
    const ssize_t count = ::send(socket_.get(), text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Error::from_errno("write to the daemon");
    sent += static_cast<std::size_t>(count);
  }
  return {};
}

// One document per line, as QMP servers write them.
Result<Json> QmpClient::receive() {
  std::size_t searched = 0;
  while (true) {
    const auto end = input_.find('\n', searched);
    if (end != std::string::npos) {
      Json document = Json::parse(input_.substr(0, end), nullptr, false);
      input_.erase(0, end + 1);
      if (!document.is_object()) return Error(ErrorKind::io, "the daemon sent something that is not QMP");
      return document;
    }
    searched = input_.size();
    if (searched > max_line) return Error(ErrorKind::io, "the daemon's reply is too long");
    char buffer[65536];
    const ssize_t count = ::recv(socket_.get(), buffer, sizeof buffer, 0);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Error::from_errno("read from the daemon");
    if (count == 0) return Error(ErrorKind::io, "the daemon closed the connection");
    input_.append(buffer, static_cast<std::size_t>(count));
  }
}

}  // namespace migrationd::ctl

// SPDX-License-Identifier: Apache-2.0
//
// QmpClient: one control connection, blocking. A reply is waited for as long as the daemon lives: its end closes
// the connection, and commands that take long (verify-machine) have no other bound.
#pragma once

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "tools/migrationctl/text.hpp"

#include <string>
#include <string_view>

namespace migrationd::ctl {

class QmpClient {
 public:
  // Connects and negotiates. Error: ErrorKind::io, naming the path and what to do.
  static Result<QmpClient> connect(const std::string& path);

  // The command's "return". An error reply is ErrorKind::peer with the daemon's text; anything else that goes
  // wrong is ErrorKind::io. Events that come meanwhile are dropped.
  Result<Json> execute(std::string_view command, Json arguments = Json::object());
  // Where it was connected to.
  const std::string& path() const noexcept { return path_; }

 private:
  explicit QmpClient(UniqueFd socket) : socket_(std::move(socket)) {}
  Result<void> send(const Json& request);
  Result<Json> receive();

  UniqueFd socket_;
  std::string path_;
  std::string input_;
};

}  // namespace migrationd::ctl

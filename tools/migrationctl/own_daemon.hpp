// SPDX-License-Identifier: Apache-2.0
//
// OwnDaemon: a migrationd that a command starts for itself, with a control socket in a directory of its own.
//
// The program is $MIGRATIOND, or the one beside this program (a build's tree, an installation's), or that of PATH. It
// is in a session of its own, so that Ctrl-C at the command does not end a machine's memory server. finish() ends it;
// what is not finished goes on when the command has ended.
#pragma once

#include "base/result.hpp"
#include "tools/migrationctl/qmp_client.hpp"

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>

namespace migrationd::ctl {

class OwnDaemon {
 public:
  // Waits until it answers. Error: it does not start; its own words are in the text.
  static Result<std::unique_ptr<OwnDaemon>> start(const std::string& name);
  ~OwnDaemon();
  OwnDaemon(const OwnDaemon&) = delete;
  OwnDaemon& operator=(const OwnDaemon&) = delete;

  QmpClient& client() noexcept { return *client_; }
  const std::string& socket() const noexcept { return socket_; }
  pid_t pid() const noexcept { return pid_; }
  // `quit`, and waits until it is gone.
  void finish();

 private:
  OwnDaemon() = default;
  Result<void> launch(const std::string& program, const std::string& name);
  Result<void> await_socket();
  std::string last_words() const;

  std::string directory_;
  std::string socket_;
  std::string log_;
  pid_t pid_ = -1;
  std::optional<QmpClient> client_;
};

}  // namespace migrationd::ctl

// SPDX-License-Identifier: Apache-2.0
#include "daemon/service.hpp"

#include "tests/unit/catch.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cstdlib>
#include <cstring>

using namespace migrationd;

namespace {

// A socket in the abstract namespace that stands for the service manager's.
class FakeManager {
 public:
  FakeManager() : socket_(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)) {
    const std::string name = "migrationd-test-" + std::to_string(::getpid());
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path + 1, name.data(), name.size());
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    REQUIRE(::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address), length) == 0);
    ::setenv("NOTIFY_SOCKET", ("@" + name).c_str(), 1);
  }
  ~FakeManager() { ::unsetenv("NOTIFY_SOCKET"); }
  FakeManager(const FakeManager&) = delete;
  FakeManager& operator=(const FakeManager&) = delete;

  std::string message() const {
    char text[1024];
    const ssize_t got = ::recv(socket_.get(), text, sizeof text, MSG_DONTWAIT);
    return got < 0 ? std::string() : std::string(text, static_cast<std::size_t>(got));
  }

 private:
  UniqueFd socket_;
};

// sd_listen_fds looks at descriptor 3 and at the process's own number: only a child can set that up.
int child_with_two_sockets() {
  const pid_t child = ::fork();
  if (child == 0) {
    ::setenv("LISTEN_PID", std::to_string(::getpid()).c_str(), 1);
    ::setenv("LISTEN_FDS", "2", 1);
    const int any = ::open("/dev/null", O_RDONLY);
    ::dup2(any, 3);
    ::dup2(any, 4);
    const bool before = service::is_socket_activated();
    const auto passed = service::listen_fds();
    const bool good = before && passed.size() == 2 && passed[0].get() == 3 && passed[1].get() == 4 &&
                      (::fcntl(4, F_GETFD) & FD_CLOEXEC) != 0 && std::getenv("LISTEN_FDS") == nullptr;
    ::_exit(good && !service::is_socket_activated() && service::listen_fds().empty() ? 0 : 1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  return status;
}

}  // namespace

TEST_CASE("Service.tells_readiness_status_and_the_end") {
  const FakeManager manager;
  service::notify_ready("waiting for a machine");
  const std::string first = manager.message();
  if (first.empty()) {
    WARN("skipped: built without systemd");
    return;
  }
  CHECK(first == "READY=1\nSTATUS=waiting for a machine");
  service::notify_status("a\nREADY=1");
  CHECK(manager.message() == "STATUS=a\\x0aREADY=1");
  service::notify_stopping();
  CHECK(manager.message() == "STOPPING=1");
}

TEST_CASE("Service.says_nothing_without_a_service_manager") {
  ::unsetenv("NOTIFY_SOCKET");
  service::notify_ready("x");
  service::notify_status("x");
  service::notify_stopping();
  CHECK_FALSE(service::is_socket_activated());
  CHECK(service::listen_fds().empty());
}

#ifdef MIGRATIOND_WITH_SYSTEMD
TEST_CASE("Service.takes_passed_sockets_once") { CHECK(child_with_two_sockets() == 0); }
#endif

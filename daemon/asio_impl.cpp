// SPDX-License-Identifier: Apache-2.0
//
// Asio is compiled here, once (BOOST_ASIO_SEPARATE_COMPILATION). Its headers are included by this file and by
// daemon/control/event_loop.cpp only; everything else uses control::EventLoop.
#include <boost/asio/impl/src.hpp>
